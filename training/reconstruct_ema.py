# SPDX-License-Identifier: Apache-2.0
r"""Save the pipeline of a finished run with averaged weights (EMA) of another width, chosen after training.

    python training/reconstruct_ema.py --run_dir runs/mine --sigma_rel 0.15 --output_dir runs/mine-0.15

The run has to be trained with --post_hoc_ema. The same as `diffusers-mdm reconstruct-ema`.
"""

PARSES_FIRST = True  # see diffusers_mdm/__init__.py

import sys
from collections.abc import Sequence

from diffusers_mdm.command_parsing import mistakes_in_one_line
from diffusers_mdm.training.commands import average_reconstruction


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command; user errors end the program with one line that says what to do."""
    with mistakes_in_one_line():
        average_reconstruction.run(f"python {sys.argv[0]}", sys.argv[1:] if argv is None else argv)


if __name__ == "__main__":
    main()
