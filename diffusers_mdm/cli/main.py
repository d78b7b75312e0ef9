# SPDX-License-Identifier: Apache-2.0
"""The entry point of `diffusers-mdm` and of `python -m diffusers_mdm`.

Exit codes: 0 for success (also of a training run that a signal has stopped after saving a checkpoint), 1 for an error
in what was asked for, 2 for a command line that cannot be understood, 130 if Ctrl-C ended the work. Other errors are
mistakes of this package, and end with a traceback.
"""

import os
import sys
from collections.abc import Sequence

from ..command_parsing import one_line
from .command import CommandGroup
from .completion import START, complete
from .registry import DIFFUSERS_MDM, PROGRAM

FAILED, INTERRUPTED = 1, 130
# The optional packages that a command may lack, and the extra that installs each.
EXTRAS = {
    "argcomplete": "completion",
    "datasets": "training",
    "matplotlib": "training",
    "psutil": "training",
    "tensorboard": "training",
    "imageio": "video",
    "imageio_ffmpeg": "video",
    "torchmetrics": "evaluation",
    "gradio": "demo",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that the arguments name; return the exit code.

    Args:
        arguments: by default those of this program.
    """
    if START in os.environ:
        complete(PROGRAM, DIFFUSERS_MDM)
    return run_program(PROGRAM, DIFFUSERS_MDM, sys.argv[1:] if arguments is None else arguments)


def run_program(program: str, group: CommandGroup, arguments: Sequence[str]) -> int:
    """Run a command of a group; print user errors in one line."""
    name = " ".join([program, *commands_in(group, arguments)])
    try:
        return group.run(program, arguments)
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # what reads the output, such as `head`, has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except (ValueError, OSError) as error:
        print(f"{name}: error: {one_line(error)}", file=sys.stderr)
    except ModuleNotFoundError as error:
        extra = EXTRAS.get((error.name or "").partition(".")[0])
        if extra is None:
            raise
        install = f'pip install "diffusers-mdm[{extra}]"'
        print(f"{name}: error: the package {error.name} is missing; it comes with {install}.", file=sys.stderr)
    return FAILED


def commands_in(group: CommandGroup, arguments: Sequence[str]) -> list[str]:
    """Return the names of commands at the beginning of the arguments."""
    names: list[str] = []
    while len(names) < len(arguments) and (command := group.find(arguments[len(names)])) is not None:
        names.append(command.name)
        loaded = command.load()
        if not isinstance(loaded, CommandGroup):
            break
        group = loaded
    return names


if __name__ == "__main__":
    sys.exit(main())
