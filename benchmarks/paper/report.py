# SPDX-License-Identifier: Apache-2.0
"""Write the report from the results of `run.py`: tables, curves, drawings, and what they say about each claim.

python -m benchmarks.paper.report --output_dir runs/paper
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmarks.paper.methods import num_parameters
from benchmarks.paper.rows import EMOJI, FEW, LOSS, METHODS, NAMES, PREDICTS, ROWS, SHIFT, STEPS, Row
from benchmarks.paper.run import RESULTS, measured

HERE = Path(__file__).parent
BEGIN, END = "<!-- results -->", "<!-- end of results -->"
Result = Mapping[str, Any]
# Two means are called different if they are this many standard errors of their difference apart.
DIFFERENT = 2.0


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and its standard error; the error of a single value is NaN."""
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return statistics.fmean(values), error


def shown(values: Sequence[float], digits: int = 0) -> str:
    """Return "mean ± error" for a table."""
    mean, error = mean_and_error(values)
    return f"{mean:.{digits}f}" if math.isnan(error) else f"{mean:.{digits}f} ± {error:.{digits}f}"


def points(results: Sequence[Result], row: Row) -> list[list[Result]]:
    """Return the results of a row, one list over seeds for every point, by images."""
    own = [entry for entry in results if (entry["row"], entry["data"], entry["drawing"]) == (row.name, row.data, "")]
    counts = sorted({entry["images"] for entry in own})
    return [[entry for entry in own if entry["images"] == count] for count in counts]


def at_images(results: Sequence[Result], row: Row, images: int) -> list[Result]:
    """Return the results of a row after a number of images, or its only ones."""
    found = points(results, row)
    return next((point for point in found if point[0]["images"] == images), found[-1] if len(found) == 1 else [])


def at_flops(results: Sequence[Result], row: Row, flops: float) -> list[Result]:
    """Return the results of a row at the point whose operations are nearest to a number, within a tenth."""
    near = min(points(results, row), key=lambda point: abs(point[0]["flops"] - flops), default=[])
    return near if near and abs(near[0]["flops"] / flops - 1) < 0.1 else []


def compare(first: Sequence[Result], second: Sequence[Result], names: tuple[str, str]) -> str:
    """Say which of two rows has the smaller distance, if three seeds of each can tell them apart."""
    if min(len(first), len(second)) < 3:
        return f"not decided: {len(first)} and {len(second)} seeds of three were run"
    (one, one_error), (other, other_error) = (
        mean_and_error([entry["distance"] for entry in entries]) for entries in (first, second)
    )
    apart = (other - one) / math.hypot(one_error, other_error)
    if abs(apart) < DIFFERENT:
        return f"no difference at this scale ({one:.0f} and {other:.0f}, {abs(apart):.1f} standard errors apart)"
    better = names[0] if apart > 0 else names[1]
    return f"{better} is nearer ({one:.0f} and {other:.0f}, {abs(apart):.1f} standard errors apart)"


def method_table(results: Sequence[Result], data: str) -> Iterator[str]:
    """Yield the lines of the table of methods on a data set, in both views."""
    rows = [row for row in ROWS if (row.group, row.data) == (METHODS, data)]
    reference = points(results, rows[0])
    if not reference:
        yield "Nothing was run."
        return
    images = max(point[0]["images"] for point in reference)
    flops = next(point[0]["flops"] for point in reference if point[0]["images"] == images)
    yield "| | parameters | seeds | distance after equal images | 16 px | 32 px | after equal operations | copying |"
    yield "|---|--:|--:|--:|--:|--:|--:|--:|"
    for row in rows:
        same, cost = at_images(results, row, images), at_flops(results, row, flops)
        cells = [row.name, f"{num_parameters(row.method):,}", str(len(same))]
        cells += [shown([e[key] for e in same]) if same else "–" for key in ("distance", "distance_16", "distance_32")]
        cells.append(shown([entry["distance"] for entry in cost]) if cost else "–")
        cells.append(shown([entry["copying"] for entry in same], 4) if same else "–")
        yield f"| {' | '.join(cells)} |"
    yield ""
    yield f"Equal images: {images:,}. Equal operations: {flops:.2e}, those of Matryoshka diffusion."


def ablation_table(results: Sequence[Result]) -> Iterator[str]:
    """Yield the lines of the table of ablations."""
    yield "| question | row | seeds | images | operations | distance | held-out error of v, 32 px |"
    yield "|---|---|--:|--:|--:|--:|--:|"
    for row in ROWS:
        found = points(results, row)
        if row.group == METHODS or not found:
            continue
        last = found[-1]
        losses = [entry["held_out_loss"][-1] for entry in last if entry["held_out_loss"]]
        cells = [row.group, f"{row.name} ({row.data})", str(len(last)), f"{last[0]['images']:,}"]
        cells += [f"{last[0]['flops']:.2e}", shown([entry["distance"] for entry in last])]
        yield f"| {' | '.join([*cells, shown(losses, 4) if losses else '–'])} |"


def claims(results: Sequence[Result]) -> Iterator[str]:
    """Yield a line for each claim of the paper."""
    by_name = {(row.name, row.data): row for row in ROWS}
    mdm = by_name[NAMES["mdm"], EMOJI]
    reference = points(results, mdm)
    last = reference[-1] if reference else []
    images, flops = (last[0]["images"], last[0]["flops"]) if last else (0, 1.0)
    for other in ("plain", "cascade", "latent"):
        row = by_name[NAMES[other], EMOJI]
        names = (NAMES["mdm"], NAMES[other])
        yield f"- {names[0]} or {names[1]}, equal images: {compare(last, at_images(results, row, images), names)}."
        yield f"- {names[0]} or {names[1]}, equal operations: {compare(last, at_flops(results, row, flops), names)}."
    for group, name, claim in (
        (STEPS, "inside out", "training from the inside out"),
        (LOSS, "loss of the outer level alone", "the loss on the outer level alone"),
        (PREDICTS, "outer level predicts the image", "an outer level that predicts the image"),
        (FEW, "mdm on 10 %", "a tenth of the images"),
        (SHIFT, "no shift", "no shift of the schedule"),
    ):
        found = points(results, by_name[name, EMOJI])
        decided = compare(found[-1] if found else [], last, (claim, "the default"))
        yield f"- {group}: {claim} or the default: {decided}."


def not_run(results: Sequence[Result]) -> Iterator[str]:
    """Yield a line for every row with fewer than three seeds."""
    for row in ROWS:
        found = points(results, row)
        number = len(found[-1]) if found else 0
        if number < 3:
            yield f"- {row.data}, {row.name}: {number or 'no'} seed(s)"


def plot(results: Sequence[Result], data: str, path: Path) -> None:
    """Plot the distance over images and over operations, with a band of one standard error."""
    figure = Figure(figsize=(9.0, 3.4), dpi=90, layout="constrained")
    for panel, key in zip(figure.subplots(1, 2), ("images", "flops"), strict=True):
        for row in (row for row in ROWS if (row.group, row.data) == (METHODS, data)):
            found = points(results, row)
            if not found:
                continue
            across = [point[0][key] for point in found]
            both = [mean_and_error([entry["distance"] for entry in point]) for point in found]
            panel.plot(across, [mean for mean, _ in both], ".-", label=row.name)
            bands = [[mean + sign * (0 if math.isnan(e) else e) for mean, e in both] for sign in (-1, 1)]
            panel.fill_between(across, *bands, alpha=0.2)
        panel.set_xlabel({"images": "training images", "flops": "operations"}[key])
        panel.set_ylabel("sliced Wasserstein distance")
        panel.grid(alpha=0.3)
        panel.legend(fontsize=7)
    figure.savefig(path, metadata={"Software": None})


def results_text(results: Sequence[Result], folder: Path, output_dir: Path) -> str:
    """Return the part of the report that depends on the results, and write its images into `folder`."""
    lines = ["## What was measured", ""]
    for data in dict.fromkeys(row.data for row in ROWS):
        if not any(entry["data"] == data for entry in results):
            continue
        plot(results, data, folder / f"{data}.png")
        lines += [f"### {data}", "", f"![Distance over images and operations](results/{data}.png)", ""]
        lines += [*method_table(results, data), ""]
        for row in (row for row in ROWS if (row.group, row.data) == (METHODS, data)):
            drawn = output_dir / row.folder / "0" / "drawn.png"
            if drawn.exists():
                shutil.copy(drawn, folder / f"{row.folder}.png")
                lines += [f"{row.name}:", "", f"![Drawings](results/{row.folder}.png)", ""]
    if any(points(results, row) for row in ROWS if row.group != METHODS):
        lines += ["### Ablations", "", *ablation_table(results), ""]
    lines += ["### The claims", "", *claims(results), ""]
    return "\n".join([*lines, "### Not run, or not with three seeds", "", *not_run(results), ""])


def write_report(output_dir: Path, page: Path = HERE / "README.md") -> None:
    """Copy results beside the page, and replace the part of the page between its marks."""
    results, folder = measured(output_dir), page.parent / "results"
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(output_dir / RESULTS, folder / RESULTS)
    for run in sorted(output_dir.glob("*/*/*/recipe.json")):
        part = run.parent.relative_to(output_dir)
        values = json.loads(run.read_text(encoding="utf-8"))
        values["scheduler"].pop("trained_betas", None)  # `methods.shifted_betas` computes them
        log = (run.parent / "history.jsonl").read_text(encoding="utf-8").splitlines()
        kept = {"recipe": values, "log": [json.loads(line) for line in log]}
        (folder / f"{'-'.join(part.parts)}.json").write_text(json.dumps(kept) + "\n", encoding="utf-8")
    before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    text = results_text(results, folder, output_dir)
    page.write_text(f"{before}{BEGIN}\n\n{text}\n{END}{rest.partition(END)[2]}", encoding="utf-8")


def main(argv: list[str] | None = None) -> None:
    """Write the report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--output_dir", type=Path, required=True, help="of run.py")
    write_report(parser.parse_args(argv).output_dir)


if __name__ == "__main__":
    main()
