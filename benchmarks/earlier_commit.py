# SPDX-License-Identifier: Apache-2.0
"""Time a guided drawing by this code against an earlier commit of it: same weights, prompts, noise and steps.

Each version runs in a process of its own, and they take turns. With one thread (`OMP_NUM_THREADS=1`) the processor's
time counts, otherwise that of the wall. The weights are those of the earlier commit:

OMP_NUM_THREADS=1 python benchmarks/earlier_commit.py --commit 5fb0aad --rounds 9
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from drawing_process import DrawingProcess
from measuring import ROOT


@contextlib.contextmanager
def checkout(commit: str) -> Iterator[Path]:
    """Have the files of a commit in a temporary folder."""
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "earlier"
        subprocess.run(["git", "-C", ROOT, "worktree", "add", "--quiet", "--detach", folder, commit], check=True)
        try:
            yield folder
        finally:
            subprocess.run(["git", "-C", ROOT, "worktree", "remove", "--force", folder], check=True)


def measure(codes: Mapping[str, Path], settings: Mapping[str, Any], rounds: int) -> dict[str, Any]:
    """Let both versions, "earlier" and "ours", draw by turns, `rounds` times after a first one that is not timed."""
    with contextlib.ExitStack() as stack:
        versions = {}
        for name, code in codes.items():
            versions[name] = DrawingProcess(code, settings)
            stack.callback(versions[name].stop)
        seconds: dict[str, list[float]] = {name: [] for name in codes}
        for number in range(-1, rounds):
            pixels = []
            for name, version in versions.items():
                version.begin()
                took, drawn = version.end()
                pixels.append(drawn)
                if number >= 0:
                    seconds[name].append(took)
    difference = max(abs(one - other) for one, other in zip(*pixels, strict=True))
    return {**summary(seconds["earlier"], seconds["ours"]), "largest difference of a pixel": difference}


def summary(earlier: Sequence[float], ours: Sequence[float]) -> dict[str, Any]:
    """Return medians; the median, smallest and largest ratio of two times of the same round; that of the fastest."""
    ratios = sorted(one / other for one, other in zip(earlier, ours, strict=True))
    return {
        "earlier, s": statistics.median(earlier),
        "ours, s": statistics.median(ours),
        "earlier / ours": statistics.median(ratios),
        "smallest": ratios[0],
        "largest": ratios[-1],
        "of the fastest": min(earlier) / min(ours),
    }


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command's flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--commit", default="HEAD", help="the earlier version; HEAD for that of uncommitted changes")
    parser.add_argument("--model", default="model_cards/mdm-emoji-64", help="folder of the pipeline in that version")
    parser.add_argument("--num_images", type=int, nargs="+", default=[1])
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--guidance_scale", type=float, default=3.0)
    parser.add_argument("--rounds", type=int, default=9, help="times that each version is timed, in turn")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure every number of images."""
    args = parse_args(argv)
    with checkout(args.commit) as earlier:
        for number in args.num_images:
            settings = {"num_images": number, "steps": args.steps, "guidance_scale": args.guidance_scale}
            settings["model"] = str(earlier / args.model)
            found = measure({"earlier": earlier, "ours": ROOT}, settings, args.rounds)
            print(f"{number} images: " + ", ".join(f"{name} {value:.4g}" for name, value in found.items()), flush=True)


if __name__ == "__main__":
    main()
