# SPDX-License-Identifier: Apache-2.0
"""The plot of a run: training and validation loss of each level against images seen."""

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
# Fraction of a curve's points over which its end is averaged.
SMOOTHED_SHARE = 0.04
MAX_DOTS = 60
_SIZE_INCHES, _DPI = (8.0, 3.2), 120
# Fixed margins, since measuring every label to lay out a figure takes as long as drawing it.
# Those on the left have room for the widest numbers, such as 0.00012.
_LEFT, _RIGHT, _TOP, _BOTTOM, _BETWEEN, _LABEL = 1.0, 0.15, 0.3, 0.5, 0.1, 0.25  # inches


class Curve(NamedTuple):
    """A quantity against images seen, two lists of the same length, and the stage of each point."""

    images: list[int]
    values: list[float]
    stages: list[str]


def can_plot() -> bool:
    """Return whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def plot_curves(history: History, path: Path, sides: Sequence[int] = ()) -> Path | None:
    """Plot the smoothed training loss of each level, and its validation loss below, as a PNG.

    Training losses include the weights of their stages, validation losses are the unweighted error of v, so each has
    its own axis. Vertical lines mark the end of a stage.

    Args:
        history: history of the run.
        path: image file to write.
        sides: sides of the levels in pixels, innermost first, for the legend.

    Returns:
        `path`, or None if nothing has been measured yet.

    Raises:
        ValueError: if matplotlib is not installed.
    """
    if not can_plot():
        raise ValueError("Plotting curves needs matplotlib: pip install matplotlib.")
    from matplotlib.figure import Figure

    entries = history.read()
    kinds = [kind for kind in (TRAINING, VALIDATION) if level_curves(entries, kind)]
    if not kinds:
        return None
    width, height = _SIZE_INCHES
    # A figure with its own canvas does not touch matplotlib's global state or open windows.
    figure = Figure(figsize=(width, height * len(kinds)), dpi=_DPI)
    panels = figure.subplots(len(kinds), sharex=True, squeeze=False, gridspec_kw=_margins(len(kinds)))[:, 0].tolist()
    for panel, kind in zip(panels, kinds, strict=True):
        for level, curve in level_curves(entries, kind).items():
            label = f"level {level}" + (f" ({sides[level]} px)" if level < len(sides) else "")
            draw = _draw_training if kind == TRAINING else _draw_validation
            draw(panel, curve, f"C{level}", label)
        panel.set_ylabel("training loss" if kind == TRAINING else "validation loss (error of v)")
        panel.yaxis.set_label_coords((_LABEL - _LEFT) / (width - _LEFT - _RIGHT), 0.5)
        panel.set_yscale("log")
        panel.yaxis.set_major_formatter(lambda loss, _: f"{loss:g}")
        panel.yaxis.set_minor_formatter(_sparse_labels())
        panel.grid(alpha=0.3)
        panel.legend(loc="upper right")
    _mark_stages(panels, entries)
    panels[-1].set_xlim(left=0)
    panels[-1].set_xlabel("images seen")
    panels[-1].xaxis.set_major_formatter(lambda images, _: f"{images:,.0f}")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Software": None})
    return path


def _margins(num_panels: int) -> dict[str, float]:
    """Return the places of panels in a figure, as fractions of its size."""
    width, height = _SIZE_INCHES[0], _SIZE_INCHES[1] * num_panels
    panel = (height - _TOP - _BOTTOM - _BETWEEN * (num_panels - 1)) / num_panels
    return {
        "left": _LEFT / width,
        "right": 1 - _RIGHT / width,
        "top": 1 - _TOP / height,
        "bottom": _BOTTOM / height,
        "hspace": _BETWEEN / panel,
    }


def _sparse_labels() -> Formatter:
    """Return a formatter that labels minor ticks if there is room, as 0.06 rather than as a power."""
    from matplotlib.ticker import LogFormatter

    class SparseLabels(LogFormatter):
        def __call__(self, x: float, pos: int | None = None) -> str:
            return f"{x:g}" if super().__call__(x, pos) else ""

    return SparseLabels()


def level_curves(entries: Sequence[dict[str, Any]], kind: str) -> dict[int, Curve]:
    """Return the curves `<kind>/level_<i>` by level, with only the positive values that a logarithmic axis can
    show.
    """
    curves: dict[int, Curve] = {}
    for entry in entries:
        for name, value in entry.items():
            match = re.fullmatch(rf"{kind}/level_(\d+)", name)
            if match and value is not None and value > 0:
                curve = curves.setdefault(int(match[1]), Curve([], [], []))
                curve.images.append(entry["images"])
                curve.values.append(value)
                curve.stages.append(entry["stage"])
    return dict(sorted(curves.items()))


def smooth(values: Sequence[float], window: float) -> list[float]:
    """Return the running mean m_n = s m_{n-1} + (1 - s) x_n with s = 1 - 1 / window, corrected for its start at 0."""
    past = 1 - 1 / max(1.0, window)
    smoothed, mean, weight = [], 0.0, 0.0
    for value in values:
        mean, weight = past * mean + (1 - past) * value, past * weight + (1 - past)
        smoothed.append(mean / weight)
    return smoothed


def _draw_training(panel: Axes, curve: Curve, color: str, label: str) -> None:
    """Draw the measured values, faint, and the smoothed curve, which restarts at each stage since the weights may
    differ.
    """
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


def _mark_stages(panels: Sequence[Axes], entries: Sequence[dict[str, Any]]) -> None:
    """Draw a line at the end of each stage, and the name of each stage at the top."""
    stages: dict[str, list[int]] = {}
    for entry in entries:
        stages.setdefault(entry["stage"], []).append(entry["images"])
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
