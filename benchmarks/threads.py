# SPDX-License-Identifier: Apache-2.0
"""Time guided drawings by one thread, by several threads, and by several processes of one thread at the same time.

Each setting draws in processes of its own, and they take turns:

python benchmarks/threads.py --num_images 1 4 --rounds 5
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from drawing_process import DrawingProcess
from measuring import ROOT


def measure(settings: Mapping[str, Any], num_threads: int, rounds: int) -> dict[str, list[float]]:
    """Return images per second in each round, by setting."""
    with contextlib.ExitStack() as stack:

        def processes(number: int, threads: int) -> list[DrawingProcess]:
            made = [DrawingProcess(ROOT, settings, threads) for _ in range(number)]
            for process in made:
                stack.callback(process.stop)
            return made

        ways = {
            "1 thread": processes(1, 1),
            f"{num_threads} threads": processes(1, num_threads),
            f"{num_threads} processes": processes(num_threads, 1),
        }
        rates: dict[str, list[float]] = {name: [] for name in ways}
        for number in range(-1, rounds):
            for name, way in ways.items():
                start = time.perf_counter()
                for process in way:
                    process.begin()
                for process in way:
                    process.end()
                if number >= 0:
                    rates[name].append(settings["num_images"] * len(way) / (time.perf_counter() - start))
    return rates


def table(rates_by_number: Mapping[int, Mapping[str, Sequence[float]]]) -> str:
    """Return a Markdown table: medians, and in relation to one thread the median of the ratios of the same round."""
    lines = ["| images a call | | images/s | relative to one thread |", "|--:|---|--:|--:|"]
    for number, rates in rates_by_number.items():
        one = next(iter(rates.values()))
        for name, values in rates.items():
            ratio = statistics.median(value / other for value, other in zip(values, one, strict=True))
            lines.append(f"| {number} | {name} | {statistics.median(values):.3g} | {ratio:.2f} |")
    return "\n".join(lines)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command's flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(ROOT / "model_cards" / "mdm-emoji-64"), help="folder of the pipeline")
    parser.add_argument("--num_images", type=int, nargs="+", default=[1, 4], help="images of a call")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--guidance_scale", type=float, default=1.5)
    parser.add_argument("--num_threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--rounds", type=int, default=5, help="times that each setting is timed, in turn")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure every number of images."""
    args = parse_args(argv)
    settings = {"model": str(Path(args.model).resolve()), "steps": args.steps, "guidance_scale": args.guidance_scale}
    print(table({n: measure({**settings, "num_images": n}, args.num_threads, args.rounds) for n in args.num_images}))


if __name__ == "__main__":
    main()
