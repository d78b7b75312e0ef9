# SPDX-License-Identifier: Apache-2.0
"""Time how much `import diffusers_mdm` adds to a program that has imported diffusers' own pipeline classes.

Both imports are timed one after the other in the same fresh interpreter, several times. Other load on the machine
changes the import time of diffusers by seconds from run to run, so a difference between separate runs would mostly
measure that.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from pathlib import Path

PROGRAM = """
from time import perf_counter, process_time
start = perf_counter()
from diffusers import DDIMScheduler, DiffusionPipeline, StableDiffusionPipeline, UNet2DConditionModel
others, others_cpu = perf_counter(), process_time()
import diffusers_mdm
print(others - start, perf_counter() - others, process_time() - others_cpu)
"""


def seconds_of_imports() -> tuple[float, float, float]:
    """Import in a fresh interpreter; return the seconds for diffusers, for this package after it, and the processor
    time of the latter.
    """
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=root, capture_output=True, encoding="utf-8", check=True)
    others, added, added_cpu = (float(word) for word in done.stdout.split()[-3:])
    return others, added, added_cpu


def main(argv: list[str] | None = None) -> None:
    """Import several times and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args(argv)
    seconds_of_imports()  # fills the disk cache
    runs = [seconds_of_imports() for _ in range(args.rounds)]
    others, added, added_cpu = (statistics.median(column) for column in zip(*runs, strict=True))
    print(
        f"diffusers' classes {others:.2f} s, diffusers_mdm after them {added:.3f} s ({added_cpu:.3f} s of processor "
        f"time); medians of {args.rounds}, largest {max(run[1] for run in runs):.3f} s"
    )


if __name__ == "__main__":
    main()
