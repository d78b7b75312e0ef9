# SPDX-License-Identifier: Apache-2.0
"""Time what `import diffusers_mdm` adds to a program that imports diffusers' own pipeline classes.

The program with and the program without it take turns, each in a fresh interpreter.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from pathlib import Path

HOST = "from diffusers import DDIMScheduler, DiffusionPipeline, StableDiffusionPipeline, UNet2DConditionModel"
PROGRAMS = {"host": HOST, "with plugin": f"{HOST}; import diffusers_mdm"}
TIMED = "import time; start = time.perf_counter(); {program}; print(time.perf_counter() - start)"


def seconds_of(program: str) -> float:
    """Run a line of imports in a fresh interpreter; return the seconds it took, the interpreter's start excluded."""
    command = [sys.executable, "-c", TIMED.format(program=program)]
    root = Path(__file__).parents[1]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def main() -> None:
    """Alternate the two programs and print the difference of their medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    seconds: dict[str, list[float]] = {name: [] for name in PROGRAMS}
    for round_index in range(-1, args.rounds):  # the round before the first one fills the disk cache
        for name, program in PROGRAMS.items():
            elapsed = seconds_of(program)
            if round_index >= 0:
                seconds[name].append(elapsed)
    host, both = (statistics.median(seconds[name]) for name in PROGRAMS)
    print(f"host {host:.2f} s, with diffusers_mdm {both:.2f} s, added {both - host:+.2f} s (medians of {args.rounds})")


if __name__ == "__main__":
    main()
