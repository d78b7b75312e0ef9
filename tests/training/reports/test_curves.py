# SPDX-License-Identifier: Apache-2.0
import math
import sys

import numpy as np
import pytest
from PIL import Image

from diffusers_mdm.training.reports import curves as curve_plot
from diffusers_mdm.training.reports.curves import level_curves, plot_curves, smooth
from diffusers_mdm.training.state.history import History

matplotlib = pytest.importorskip("matplotlib")
# matplotlib's own colours of its first two curves.
BLUE, ORANGE = (31, 119, 180), (255, 127, 14)


@pytest.fixture
def history(tmp_path):
    """Two stages of ten reports each, with validation losses every five."""
    history = History(tmp_path / "history.jsonl")
    for step in range(1, 21):
        values = {"loss/level_0": math.exp(-step / 5), "loss/level_0/quartile_1": 0.1}
        if step > 10:
            values["loss/level_1"] = math.exp(-step / 10)
        if step % 5 == 0:
            values["validation_loss/level_0"] = 0.5 / step
        history.add(step, 8 * step, "inner" if step <= 10 else "outer", **values)
    return history


def has_color(path, color) -> bool:
    with Image.open(path) as image:
        return bool((np.asarray(image.convert("RGB")) == color).all(-1).any())


def test_curves_are_those_of_the_levels(history):
    curves = level_curves(history.read(), "loss")
    assert list(curves) == [0, 1]
    assert curves[1].images == [8 * step for step in range(11, 21)]
    assert curves[0].values[3] == math.exp(-4 / 5)
    assert curves[0].stages == ["inner"] * 10 + ["outer"] * 10
    assert list(level_curves(history.read(), "validation_loss")) == [0]


def test_values_that_a_logarithm_cannot_take_are_left_out():
    rows = [{"images": 8, "stage": "inner", "loss/level_0": value} for value in (0.0, None, 0.5)]
    assert level_curves(rows, "loss")[0].values == [0.5]


def test_smoothing_keeps_constants_and_follows_slowly():
    assert smooth([2.0] * 5, 3) == pytest.approx([2.0] * 5)
    assert smooth([1.0, 5.0, 3.0], 1) == pytest.approx([1.0, 5.0, 3.0])
    smoothed = smooth([0.0] * 10 + [1.0] * 10, 5)
    assert smoothed[9] == 0
    assert 0.15 < smoothed[10] < 0.3  # about one part in five
    assert 0.85 < smoothed[-1] < 1


def test_plot_shows_levels_and_a_panel_for_the_validation_loss(history, tmp_path):
    path = plot_curves(history, tmp_path / "plots" / "curve.png", sides=(8, 16))
    assert path == tmp_path / "plots" / "curve.png"
    assert has_color(path, BLUE)
    assert has_color(path, ORANGE)
    history.cut_after(4)
    early = plot_curves(history, tmp_path / "early.png")
    assert has_color(early, BLUE)
    assert not has_color(early, ORANGE)
    with Image.open(path) as both, Image.open(early) as training_alone:
        assert both.width == training_alone.width
        assert both.height == 2 * training_alone.height


def test_one_report_is_a_dot(tmp_path):
    history = History(tmp_path / "history.jsonl")
    history.add(1, 8, "inner", **{"loss/level_0": 0.5})
    assert has_color(plot_curves(history, tmp_path / "curve.png"), BLUE)


def test_nothing_measured_is_no_plot(tmp_path):
    history = History(tmp_path / "history.jsonl")
    assert plot_curves(history, tmp_path / "curve.png") is None
    history.add(1, 8, "inner", learning_rate=0.1)
    assert plot_curves(history, tmp_path / "curve.png") is None
    assert not (tmp_path / "curve.png").exists()


def test_plots_are_reproducible_and_leave_global_state_alone(history, tmp_path):
    before, had_windows = dict(matplotlib.rcParams), "matplotlib.pyplot" in sys.modules
    first = plot_curves(history, tmp_path / "first.png").read_bytes()
    assert plot_curves(history, tmp_path / "second.png").read_bytes() == first
    assert dict(matplotlib.rcParams) == before
    assert ("matplotlib.pyplot" in sys.modules) == had_windows


def test_without_matplotlib_the_error_says_what_to_install(history, tmp_path, monkeypatch):
    monkeypatch.setattr(curve_plot, "can_plot", lambda: False)
    with pytest.raises(ValueError, match="pip install matplotlib"):
        plot_curves(history, tmp_path / "curve.png")
