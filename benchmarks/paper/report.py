# SPDX-License-Identifier: Apache-2.0
"""Write the report from the results of `run.py`: tables, curves, drawings, and what they say about each claim.

python -m benchmarks.paper.report --output_dir runs/paper
python -m benchmarks.paper.report --output_dir runs/paper-4096 --page benchmarks/paper/larger/README.md
"""

from __future__ import annotations

import argparse
import io
import json
import math
import shutil
import statistics
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from PIL import Image

from benchmarks.paper.methods import num_parameters
from benchmarks.paper.rows import BIRDS, EMOJI, METHODS, NAMES, ROWS, Row
from benchmarks.paper.run import RESULTS, Settings, measured

HERE = Path(__file__).parent
BEGIN, END = "<!-- results -->", "<!-- end of results -->"
Result = Mapping[str, Any]
# Two means are called different if they are this many standard errors of their difference apart.
DIFFERENT = 2.0
PALETTE = 128  # colours of the strips of drawings
FEW_IMAGES = {"10 %": "a tenth of the images", "30 %": "30 % of the images"}


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and its standard error; the error of a single value is NaN."""
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return statistics.fmean(values), error


def shown(values: Sequence[float], digits: int = 0) -> str:
    """Return "mean ± error" for a table."""
    mean, error = mean_and_error(values)
    return f"{mean:.{digits}f}" if math.isnan(error) else f"{mean:.{digits}f} ± {error:.{digits}f}"


def points(results: Sequence[Result], row: Row, drawing: str = "") -> list[list[Result]]:
    """Return the results of a row, one list over seeds for every point, by images.

    If a plateau ended a stage, the seeds have different numbers of images, and are one point.
    """
    wanted = (row.name, row.data, drawing)
    own = [entry for entry in results if (entry["row"], entry["data"], entry["drawing"]) == wanted]
    if row.changes.until_plateau is not None:
        return [own] if own else []
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


def compare(first: Sequence[Result], second: Sequence[Result], key: str = "distance") -> tuple[float, str]:
    """Return by how many standard errors the first row's mean is smaller than the second's, and both means in words.

    The number is NaN if fewer than three seeds of either were run.
    """
    if min(len(first), len(second)) < 3:
        return math.nan, f"{len(first)} and {len(second)} seeds of three were run"
    (one, one_error), (other, other_error) = (
        mean_and_error([entry[key] for entry in entries]) for entries in (first, second)
    )
    apart = (other - one) / math.hypot(one_error, other_error)
    return apart, f"{one:.0f} and {other:.0f}, {abs(apart):.1f} standard errors apart"


def verdict(apart: float) -> str:
    """Say what a difference decides about the claim that the first row is better."""
    if math.isnan(apart):
        return "not decided"
    if abs(apart) < DIFFERENT:
        return "no difference at this scale"
    return "holds at this scale" if apart > 0 else "does not hold at this scale"


def method_table(results: Sequence[Result], data: str) -> Iterator[str]:
    """Yield the lines of the table of methods on a data set, in both views."""
    rows = [row for row in ROWS if (row.group, row.data) == (METHODS, data)]
    images, flops = scale_of(results, rows[0])
    labelled = any("retrieval" in entry for entry in results if entry["data"] == data)
    heads = ["", "parameters", "seeds", "equal images: distance", "16 px", "32 px", "copying"]
    heads += ["retrieval", "equal operations: distance"] if labelled else ["equal operations: distance"]
    yield f"| {' | '.join(heads)} |"
    yield f"|---{'|--:' * (len(heads) - 1)}|"
    for row in rows:
        same, cost = at_images(results, row, images), at_flops(results, row, flops)
        cells = [row.name, f"{num_parameters(row.method):,}", str(len(same))]
        cells += [cell(same, key) for key in ("distance", "distance_16", "distance_32")] + [cell(same, "copying", 4)]
        cells += [cell(same, "retrieval", 2)] if labelled else []
        yield f"| {' | '.join([*cells, cell(cost, 'distance')])} |"
    floor = statistics.fmean(entry["floor"] for entry in results if entry["data"] == data)
    yield ""
    yield (
        f"Equal images: {images:,}. Equal operations: {flops:.2e}, those of {rows[0].name}. The distance between "
        f"training images and held-out ones is {floor:.0f}; a perfect model would reach about that."
    )


def data_of(results: Sequence[Result]) -> list[str]:
    """Return the names of the data sets on which anything was measured."""
    return [data for data in (EMOJI, BIRDS) if any(entry["data"] == data for entry in results)]


def scale_of(results: Sequence[Result], row: Row) -> tuple[int, float]:
    """Return images and operations of the last point of a row; 0 without one."""
    found = points(results, row)
    return (found[-1][0]["images"], found[-1][0]["flops"]) if found else (0, 0.0)


def cell(entries: Sequence[Result], key: str, digits: int = 0) -> str:
    """Return a cell of a table: mean and standard error of a measure, or a dash."""
    return shown([entry[key] for entry in entries], digits) if entries else "–"


def ablation_table(results: Sequence[Result]) -> Iterator[str]:
    """Yield the lines of the table of ablations, each with the row that it changes."""
    yield "| question | row | seeds | images | operations | distance | 16 px | 32 px | validation loss |"
    yield "|---|---|--:|--:|--:|--:|--:|--:|--:|"
    for row in ROWS:
        found = points(results, row)
        if not found or (row.group == METHODS and row.method not in ("mdm", "plain")):
            continue
        for point in found[-1:] if row.group == METHODS else found:
            losses = [entry["held_out_loss"][-1] for entry in point if entry["held_out_loss"]]
            cells = ["default" if row.group == METHODS else row.group, f"{row.name} ({row.data})", str(len(point))]
            cells += [f"{point[0]['images']:,}", f"{point[0]['flops']:.2e}"]
            cells += [cell(point, key) for key in ("distance", "distance_16", "distance_32")]
            yield f"| {' | '.join([*cells, shown(losses, 3) if losses else '–'])} |"


def drawing_table(results: Sequence[Result]) -> Iterator[str]:
    """Yield the lines of the table of other drawings with the same trained models."""
    yield "| model | drawing | seeds | distance | 16 px | 32 px | retrieval |"
    yield "|---|---|--:|--:|--:|--:|--:|"
    for row in ROWS:
        for name in ("", *row.drawings) if row.drawings and points(results, row) else ():
            last = _last(results, row, name)
            cells = [f"{row.name} ({row.data})", name or "as elsewhere", str(len(last))]
            cells += [cell(last, key) for key in ("distance", "distance_16", "distance_32")]
            has_classes = bool(last) and "retrieval" in last[0]
            yield f"| {' | '.join([*cells, cell(last, 'retrieval', 2) if has_classes else '–'])} |"


def claims(results: Sequence[Result]) -> Iterator[str]:
    """Yield a line for each claim of the paper and for each choice that it leaves open, and one for what is left."""
    left = []
    for claim, better, other in compared(results):
        if not better or not other:
            left.append(claim)
            continue
        apart, said = compare(better, other)
        small, small_said = compare(better, other, "distance_16")
        at_16 = "" if math.isnan(small) else f" At 16 px alone: {verdict(small)} ({small_said})."
        yield f"- {claim}: **{verdict(apart)}** ({said}).{at_16}"
    for share, words in FEW_IMAGES.items():
        claim = f"{EMOJI}, MDM loses less than simple diffusion with {words}"
        decided = _data_efficiency(results, share)
        if decided is None:
            left.append(claim)
        else:
            yield f"- {claim}: {decided}."
    if left:
        yield f"- Not measured in the time: {'; '.join(left)}."


def compared(results: Sequence[Result]) -> Iterator[tuple[str, Sequence[Result], Sequence[Result]]]:
    """Yield claims, and the results of what is said to be better and of what it is compared with."""
    by_name = {(row.name, row.data): row for row in ROWS}
    for data in data_of(results):
        mdm = by_name[NAMES["mdm"], data]
        images, flops = scale_of(results, mdm)
        last = at_images(results, mdm, images)
        for other in ("plain", "cascade", "latent"):
            row = by_name[NAMES[other], data]
            seen, spent = at_images(results, row, images), at_flops(results, row, flops)
            claim = f"{data}, MDM is better than {row.name} after equal"
            if seen == spent:
                yield f"{claim} images and operations", last, seen
            else:
                yield f"{claim} images", last, seen
                yield f"{claim} operations", last, spent
        for name in mdm.drawings:
            yield (
                f'{data}, MDM drawn with the setting "{name}" is better than without',
                _last(results, mdm, name),
                last,
            )
        for name, (claim, is_better, than) in CLAIMS.items():
            if (name, data) in by_name:
                row, other = by_name[name, data], _last(results, by_name[than, data])
                found = points(results, row) or [[]]
                # A row with another cost per image was measured twice.
                views = ("",) if len(found) == 1 else (", equal images", ", equal operations")
                for view, point in zip(views, found, strict=True):
                    yield f"{data}, {claim}{view}", *((point, other) if is_better else (other, point))


def _last(results: Sequence[Result], row: Row, drawing: str = "") -> Sequence[Result]:
    return (points(results, row, drawing) or [[]])[-1]


# Rows, what their comparison claims, whether the row is claimed to be the better one, and what it is compared with.
MDM = NAMES["mdm"]
CLAIMS = {
    "inside out": (
        "training from the inside out is better than all levels from the start, equal operations",
        True,
        MDM,
    ),
    "inside out, growing by the loss": (
        "adding the outer level when the loss stops falling is better than after fixed steps",
        True,
        "inside out",
    ),
    "loss of the outer level alone": ("the loss on all levels is better than on the outermost alone", False, MDM),
    "outer level weighs 4": ("equal weights are better than a weight of 4 for the outer level", False, MDM),
    "half of the batch at the outer level": ("the whole batch at the outer level is better than half", False, MDM),
    "no shift": ("shifting the noise schedule of the outer level is better than not", False, MDM),
    "shift power 2": ("shift power 1 is better than 2", False, MDM),
    "three levels": ("two levels are better than three", False, MDM),
    "levels share no features": ("levels that share features are better than levels that share none", False, MDM),
    "no features for the inner level": ("features of the outer level for the inner one help", False, MDM),
    "no features for the outer level": ("features of the inner level for the outer one help", False, MDM),
    "outer level predicts the image": (
        "an outer level that predicts v is better than one that predicts the image",
        False,
        MDM,
    ),
    "outer level predicts the residual": (
        "an outer level that predicts v is better than one that predicts the residual",
        False,
        MDM,
    ),
}


def _data_efficiency(results: Sequence[Result], share: str) -> str | None:
    """Compare what training on a share of the images costs both methods; None if one was not run."""
    by_name = {row.name: row for row in ROWS if row.data == EMOJI}
    rises: list[tuple[float, float]] = []
    for method, few in (("mdm", f"mdm on {share}"), ("plain", f"simple on {share}")):
        pair = [_last(results, by_name[name]) for name in (few, NAMES[method])]
        if not all(pair):
            return None
        (one, one_error), (whole, error) = (mean_and_error([e["distance"] for e in entries]) for entries in pair)
        # A single seed has no error, which leaves the difference undecided.
        rises.append((one - whole, math.hypot(one_error, error) if min(map(len, pair)) > 2 else math.nan))
    apart = (rises[1][0] - rises[0][0]) / math.hypot(rises[0][1], rises[1][1])
    said = f"the distance rises by {rises[0][0]:.0f} and by {rises[1][0]:.0f}"
    said += "; too few seeds" if math.isnan(apart) else f", {abs(apart):.1f} standard errors apart"
    return f"**{verdict(apart)}** ({said})"


def not_run(results: Sequence[Result]) -> Iterator[str]:
    """Yield a line for every data set with rows of fewer than three seeds, or one that there are none."""
    seeds = [(row, len((points(results, row) or [[]])[-1])) for row in ROWS]
    for data in (EMOJI, BIRDS):
        few = [f"{row.name} ({number or 'no'} seed(s))" for row, number in seeds if row.data == data and number < 3]
        if few:
            yield f"- {data}: {'; '.join(few)}"
    if all(number >= 3 for _, number in seeds):
        yield "None."


def plot(results: Sequence[Result], data: str, path: Path) -> None:
    """Plot the distance over images and over operations, with a band from the best to the worst seed."""
    figure = Figure(figsize=(9.0, 3.4), dpi=90, layout="constrained")
    for panel, key in zip(figure.subplots(1, 2, sharey=True), ("images", "flops"), strict=True):
        for row in (row for row in ROWS if (row.group, row.data) == (METHODS, data)):
            found = points(results, row)
            if not found:
                continue
            across = [point[0][key] for point in found]
            values = [[entry["distance"] for entry in point] for point in found]
            panel.plot(across, list(map(statistics.fmean, values)), ".-", label=row.name)
            panel.fill_between(across, list(map(min, values)), list(map(max, values)), alpha=0.25)
        panel.set_xlabel({"images": "training images", "flops": "operations"}[key])
        panel.grid(alpha=0.3)
    figure.axes[0].set_ylim(bottom=0)
    figure.axes[0].set_ylabel("sliced Wasserstein distance")
    figure.axes[0].legend(fontsize=7)
    figure.savefig(path, metadata={"Software": None})


def side_by_side(data: str, output_dir: Path, path: Path) -> bool:
    """Draw the images of all methods one below the other: same classes, same seeds; return whether there are any."""
    strips = {"held-out images": output_dir / f"{data}-held-out.png"}
    strips |= {row.name: output_dir / row.folder / "0" / "drawn.png" for row in ROWS if row.data == data}
    images = {name: Image.open(file) for name, file in strips.items() if file.exists()}
    if len(images) < 2:
        return False
    figure = Figure(figsize=(7.0, 0.8 * len(images)), dpi=90, layout="constrained")
    for panel, (name, strip) in zip(figure.subplots(len(images), 1), images.items(), strict=True):
        panel.imshow(strip, interpolation="nearest")
        panel.set_ylabel(textwrap.fill(name, 10), rotation=0, ha="right", va="center", fontsize=7)
        panel.set_xticks([])
        panel.set_yticks([])
    drawn = io.BytesIO()
    figure.savefig(drawn)
    # A palette takes a third of the space, and noise hides what it changes.
    Image.open(drawn).convert("RGB").quantize(PALETTE).save(path, optimize=True)
    return True


def results_text(results: Sequence[Result], folder: Path, output_dir: Path) -> str:
    """Return the part of the report that depends on the results, and write its images into `folder`."""
    lines = ["## The claims", "", *claims(results), "", "## What was measured", ""]
    for data in data_of(results):
        plot(results, data, folder / f"{data}.png")
        lines += [f"### {data}", "", f"![Distance over images and operations](results/{data}.png)", ""]
        lines += [*method_table(results, data), ""]
        if side_by_side(data, output_dir, folder / f"{data}-drawings.png"):
            lines += [f"![Drawings of all methods](results/{data}-drawings.png)", ""]
    lines += ["### Ablations", "", *ablation_table(results), ""]
    lines += ["### Other drawings with the same models", "", *drawing_table(results), ""]
    lines += ["### Configs, logs and commands", "", *commands(results), ""]
    return "\n".join([*lines, "### Not run, or not with three seeds", "", *not_run(results), ""])


def commands(results: Sequence[Result]) -> Iterator[str]:
    """Yield the lines of a table with the config and the command of every row."""
    yield "| row | config and log | command |"
    yield "|---|---|---|"
    images, _ = scale_of(results, ROWS[0])
    scale = "" if images in (0, Settings.images) else f"-{images} --images {images}"
    for row in ROWS:
        if points(results, row):
            birds = "" if row.data == EMOJI else " --birds folder"
            command = f'python -m benchmarks.paper.run --output_dir runs/paper{scale}{birds} --rows "{row.name}"'
            yield f"| {row.name} ({row.data}) | [{row.folder}](results/{row.folder}.json) | `{command}` |"


def config_and_log(folder: Path) -> dict[str, Any]:
    """Return the recipes of a row, and the losses of all its seeds."""
    recipes, logs = {}, {}
    for file in sorted(folder.glob("*/*/recipe.json")):
        seed, part = file.parent.relative_to(folder).parts
        recipes[part] = json.loads(file.read_text(encoding="utf-8"))
        recipes[part]["scheduler"].pop("trained_betas", None)  # `methods.shifted_betas` computes them
        recipes[part]["data"]["path"] = Path(recipes[part]["data"]["path"]).name
        if recipes[part].get("vae"):
            recipes[part]["vae"]["pretrained"] = Path(recipes[part]["vae"]["pretrained"]).name
        lines = map(json.loads, (file.parent / "history.jsonl").read_text(encoding="utf-8").splitlines())
        logs[f"{part}, seed {seed}"] = [losses for line in lines if (losses := _losses(line))]
    return {"recipes": recipes, "logs": logs}


def _losses(line: Mapping[str, Any]) -> dict[str, Any]:
    """Return step and losses of a line of the history; nothing if it has no losses."""
    kept = {name: round(value, 4) for name, value in line.items() if "loss/level" in name and "quartile" not in name}
    return {"stage": line["stage"], "step": line["step"], **kept} if kept else {}


def write_report(output_dir: Path, page: Path = HERE / "README.md") -> None:
    """Copy results beside the page, and replace the part of the page between its marks."""
    results, folder = measured(output_dir), page.parent / "results"
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(output_dir / RESULTS, folder / RESULTS)
    for row in ROWS:
        if points(results, row):
            kept = json.dumps(config_and_log(output_dir / row.folder))
            (folder / f"{row.folder}.json").write_text(kept + "\n", encoding="utf-8")
    before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    text = results_text(results, folder, output_dir)
    page.write_text(f"{before}{BEGIN}\n\n{text}\n{END}{rest.partition(END)[2]}", encoding="utf-8")


def main(argv: list[str] | None = None) -> None:
    """Write the report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--output_dir", type=Path, required=True, help="of run.py")
    parser.add_argument("--page", type=Path, default=HERE / "README.md", help="with the two marks of the results")
    args = parser.parse_args(argv)
    write_report(args.output_dir, args.page)


if __name__ == "__main__":
    main()
