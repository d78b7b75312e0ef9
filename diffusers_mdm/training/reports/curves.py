# SPDX-License-Identifier: Apache-2.0
"""The curves of a run as one picture: loss of each level over the images seen, training and held out."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..state.history import History

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.ticker import Formatter

TRAINING, VALIDATION = "loss", "validation_loss"
# Points of a curve that are averaged at its end: this share of them.
SMOOTHED_SHARE = 0.04
MAX_DOTS = 60
_SIZE_INCHES, _DPI = (8.0, 3.2), 120


class Curve(NamedTuple):
    """One quantity over the images seen, both of the same length, and the stage of each point."""

    images: list[int]
    values: list[float]
    stages: list[str]


def can_plot() -> bool:
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def plot_curves(history: History, path: Path, sides: Sequence[int] = ()) -> Path | None:
    """Draw the loss of each level, smoothed over what was measured, with its validation loss below, as a PNG.

    Training losses are weighted as their stages say, validation losses are the plain error of v, so each has an axis
    of its own. Vertical lines are where a stage ended.

    Args:
        history: of the run.
        path: the picture to write.
        sides: of the levels in pixels, innermost first, for the legend.

    Returns:
        `path`; None if nothing was measured yet.

    Raises:
        ValueError: if matplotlib is not installed.
    """
    if not can_plot():
        raise ValueError("Plotting curves needs matplotlib: pip install matplotlib.")
    from matplotlib.figure import Figure

    rows = history.read()
    kinds = [kind for kind in (TRAINING, VALIDATION) if level_curves(rows, kind)]
    if not kinds:
        return None
    width, height = _SIZE_INCHES
    # A figure of its own canvas leaves matplotlib's global state, and whatever shows windows, alone.
    figure = Figure(figsize=(width, height * len(kinds)), dpi=_DPI, layout="constrained")
    panels = figure.subplots(len(kinds), sharex=True, squeeze=False)[:, 0].tolist()
    for panel, kind in zip(panels, kinds, strict=True):
        for level, curve in level_curves(rows, kind).items():
            label = f"level {level}" + (f" ({sides[level]} px)" if level < len(sides) else "")
            draw = _draw_training if kind == TRAINING else _draw_validation
            draw(panel, curve, f"C{level}", label)
        panel.set_ylabel("training loss" if kind == TRAINING else "validation loss (error of v)")
        panel.set_yscale("log")
        panel.yaxis.set_major_formatter(lambda loss, _: f"{loss:g}")
        panel.yaxis.set_minor_formatter(_sparse_labels())
        panel.grid(alpha=0.3)
        panel.legend(loc="upper right")
    _mark_stages(panels, rows)
    panels[-1].set_xlim(left=0)
    panels[-1].set_xlabel("images seen")
    panels[-1].xaxis.set_major_formatter(lambda images, _: f"{images:,.0f}")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Software": None})
    return path


def _sparse_labels() -> Formatter:
    """Labels of minor ticks where there is room for them, as 0.06 rather than as a power."""
    from matplotlib.ticker import LogFormatter

    class SparseLabels(LogFormatter):
        def __call__(self, x: float, pos: int | None = None) -> str:
            return f"{x:g}" if super().__call__(x, pos) else ""

    return SparseLabels()


def level_curves(rows: Sequence[dict[str, Any]], kind: str) -> dict[int, Curve]:
    """The curves `<kind>/level_<i>` by level, of positive values only, which a logarithmic axis can show."""
    curves: dict[int, Curve] = {}
    for row in rows:
        for name, value in row.items():
            match = re.fullmatch(rf"{kind}/level_(\d+)", name)
            if match and value is not None and value > 0:
                curve = curves.setdefault(int(match[1]), Curve([], [], []))
                curve.images.append(row["images"])
                curve.values.append(value)
                curve.stages.append(row["stage"])
    return dict(sorted(curves.items()))


def smooth(values: Sequence[float], window: float) -> list[float]:
    """Running mean m_n = s m_{n-1} + (1 - s) x_n with s = 1 - 1 / window, corrected for its start at 0."""
    past = 1 - 1 / max(1.0, window)
    smoothed, mean, weight = [], 0.0, 0.0
    for value in values:
        mean, weight = past * mean + (1 - past) * value, past * weight + (1 - past)
        smoothed.append(mean / weight)
    return smoothed


def _draw_training(panel: Axes, curve: Curve, color: str, label: str) -> None:
    """What was measured, faint, and the smoothed curve, which starts anew with each stage: weights may differ."""
    panel.plot(curve.images, curve.values, color=color, alpha=0.2, linewidth=0.8)
    window, begin = SMOOTHED_SHARE * len(curve.values), 0
    for end in range(1, len(curve.values) + 1):
        if end == len(curve.values) or curve.stages[end] != curve.stages[begin]:
            smoothed = smooth(curve.values[begin:end], window)
            marker = "o" if len(smoothed) == 1 else ""
            panel.plot(
                curve.images[begin:end], smoothed, color=color, label=label if begin == 0 else None, marker=marker
            )
            begin = end


def _draw_validation(panel: Axes, curve: Curve, color: str, label: str) -> None:
    dots = "o" if len(curve.values) <= MAX_DOTS else "."
    panel.plot(curve.images, curve.values, color=color, label=label, marker=dots, markersize=3, linewidth=0.8)


def _mark_stages(panels: Sequence[Axes], rows: Sequence[dict[str, Any]]) -> None:
    """A line where a stage ended, and at the top the name of each."""
    stages: dict[str, list[int]] = {}
    for row in rows:
        stages.setdefault(row["stage"], []).append(row["images"])
    begin = 0
    for position, (stage, images) in enumerate(stages.items()):
        if position:
            for panel in panels:
                panel.axvline(begin, color="gray", linestyle="--", linewidth=0.8)
        panels[0].annotate(
            stage,
            (begin, 1),
            xycoords=("data", "axes fraction"),
            xytext=(3, 3),
            textcoords="offset points",
            fontsize=8,
        )
        begin = images[-1]
