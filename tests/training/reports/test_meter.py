# SPDX-License-Identifier: Apache-2.0
import logging
import math
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker

from diffusers_mdm.training.loss.pyramid_loss import loss_table
from diffusers_mdm.training.reports import meter as meter_module
from diffusers_mdm.training.reports.meter import Meter
from diffusers_mdm.training.state.history import History


class ListTracker(GeneralTracker):
    """A tracker that keeps what it is given."""

    name = "list"
    requires_logging_directory = False

    def __init__(self):
        super().__init__()
        self.lines = []

    @property
    def tracker(self):
        return self.lines

    def log(self, values, step=None, **kwargs):
        self.lines.append((step, values))


class FullDisk(ListTracker):
    def log(self, values, step=None, **kwargs):
        raise OSError(28, "No space left on device")


@pytest.fixture
def history(tmp_path):
    return History(tmp_path / "history.jsonl")


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until it is told how many seconds have passed."""
    clock = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(meter_module, "time", SimpleNamespace(perf_counter=lambda: clock.seconds))
    return clock


def accelerator_with(*trackers) -> Accelerator:
    accelerator = Accelerator(cpu=True, log_with=list(trackers) or None)
    accelerator.init_trackers("test")
    return accelerator


def table(*errors_of_levels) -> torch.Tensor:
    """Losses of one row a level and quartile, as a step leaves them."""
    errors = [torch.tensor(errors, dtype=torch.float32) for errors in errors_of_levels]
    return loss_table(errors, torch.arange(len(errors[0])) % 4 * 250, 1000)


def test_means_are_reported_every_few_steps(history):
    tracker = ListTracker()
    with Meter(accelerator_with(tracker), history, "inner", logging_steps=2, total=5) as meter:
        for step in range(1, 6):
            meter.record(
                table([1.0 * step] * 4, [10.0 * step] * 2),
                step=step,
                images=4 * step,
                learning_rate=0.1 / step,
                values={"gradient_norm": torch.tensor(2.0 * step)},
                skipped_steps=0,
            )
    rows = history.read()
    assert [(row["step"], row["images"], row["stage"]) for row in rows] == [
        (2, 8, "inner"),
        (4, 16, "inner"),
        (5, 20, "inner"),
    ]
    assert [row["loss/level_0"] for row in rows] == [1.5, 3.5, 5.0]
    assert [row["loss/level_1"] for row in rows] == [15.0, 35.0, 50.0]
    assert rows[0]["loss/level_0/quartile_4"] == 1.5
    # Level 1 saw two of the four rows, whose t were in the first two quartiles.
    assert [key for key in rows[0] if key.startswith("loss/level_1/")] == [
        "loss/level_1/quartile_1",
        "loss/level_1/quartile_2",
    ]
    assert [row["learning_rate"] for row in rows] == [0.05, 0.025, 0.02]
    assert [row["gradient_norm"] for row in rows] == [3.0, 7.0, 10.0]
    assert all(row["images_per_second"] > 0 and row["skipped_steps"] == 0 for row in rows)
    assert [step for step, _ in tracker.lines] == [2, 4, 5]
    sent = {**tracker.lines[0][1], "step": 2, "images": 8, "stage": "inner"}
    assert sent == rows[0]


def test_levels_average_over_rows_not_over_steps(history):
    with Meter(accelerator_with(), history, "inner", logging_steps=2, total=2) as meter:
        meter.record(table([1.0] * 4), step=1, images=4, learning_rate=0.1)
        meter.record(table([4.0]), step=2, images=5, learning_rate=0.1)
    assert history.read()[0]["loss/level_0"] == pytest.approx(8 / 5)


def test_steps_that_are_not_finite_do_not_spoil_the_mean(history):
    with Meter(accelerator_with(), history, "inner", logging_steps=3, total=3) as meter:
        for step, loss in enumerate([1.0, math.nan, 3.0], start=1):
            values = {"gradient_norm": loss, "lost": math.inf}
            meter.record(table([loss] * 4), step=step, images=4 * step, learning_rate=0.1, values=values)
    (row,) = history.read()
    assert row["loss/level_0"] == 2.0
    assert row["gradient_norm"] == 2.0
    assert "lost" not in row


def test_a_resumed_stage_reports_at_the_same_steps(history):
    """Stopped after step 3 with a report before the checkpoint, then on from there."""
    for first, last in ((1, 3), (4, 6)):
        meter = Meter(
            accelerator_with(),
            history,
            "outer",
            logging_steps=2,
            total=6,
            initial=first - 1,
            step=first + 9,
            images=100 + 4 * (first - 1),
        )
        with meter:
            assert meter.bar.n == first - 1
            for step in range(first, last + 1):
                meter.record(table([1.0]), step=10 + step, images=100 + 4 * step, learning_rate=0.1)
            meter.report()
            meter.report()  # nothing since: no second line
        assert meter.bar.n == last
    assert [row["step"] for row in history.read()] == [12, 13, 14, 16]


def test_shares_of_time(history, clock):
    with Meter(accelerator_with(), history, "inner", logging_steps=1, total=None) as meter:
        with meter.waiting_for_data():
            clock.seconds += 1
        with meter.paused():
            clock.seconds += 10
        clock.seconds += 3
        meter.record(None, step=1, images=100, learning_rate=0.1)
    (row,) = history.read()
    assert row["data_wait_share"] == 0.25
    assert row["images_per_second"] == 25


def test_a_report_in_a_pause_counts_each_part_of_it_once(history, clock):
    """A validation that lasts, the report before its checkpoint, and the checkpoint."""
    with Meter(accelerator_with(), history, "inner", logging_steps=9, total=None) as meter:
        clock.seconds += 1
        meter.record(None, step=1, images=100, learning_rate=0.1)
        with meter.paused():
            clock.seconds += 10
            meter.report()
            clock.seconds += 20
        clock.seconds += 2
        meter.record(None, step=2, images=200, learning_rate=0.1)
    assert [row["images_per_second"] for row in history.read()] == [100, 50]


def test_bar_shows_losses_speed_and_what_is_left(history, capsys, caplog, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    caplog.set_level(logging.INFO)
    with Meter(accelerator_with(), history, "inner", logging_steps=2, total=10) as meter:
        for step in (1, 2):
            meter.record(
                table([0.25], [0.5]),
                step=step,
                images=4 * step,
                learning_rate=1e-3,
                skipped_steps=1,
                skipped_images=3,
            )
    bar = capsys.readouterr().err.splitlines()[-1]
    assert "2/10" in bar
    assert "loss 0.2500 0.5000" in bar
    assert "images/s" in bar
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("inner step 2/10, 8 images: loss per level 0.2500 0.5000, ")
    assert "lr 1.00e-03" in line
    assert "1 steps skipped, 3 images skipped" in line
    assert line.endswith(" left")


def test_a_stage_without_a_known_end_has_a_bar_too(history, capsys, caplog):
    caplog.set_level(logging.INFO)
    with Meter(accelerator_with(), history, "inner", logging_steps=1, total=None, initial=7) as meter:
        meter.record(table([0.25]), step=8, images=32, learning_rate=1e-3, skipped_images=0)
    assert "8step" in capsys.readouterr().err
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("inner step 8, 32 images")
    assert "left" not in line
    assert "skipped" not in line


def test_other_processes_are_silent(history, capsys, caplog, monkeypatch):
    caplog.set_level(logging.INFO)
    accelerator = accelerator_with()
    monkeypatch.setattr(type(accelerator), "is_main_process", property(lambda self: False))
    with Meter(accelerator, history, "inner", logging_steps=1, total=1) as meter:
        meter.record(table([0.25]), step=1, images=4, learning_rate=1e-3)
    assert capsys.readouterr().err == ""
    assert not caplog.records
    assert history.read() == []


def test_a_full_disk_does_not_stop_training(history, caplog):
    with Meter(accelerator_with(FullDisk()), history, "inner", logging_steps=1, total=1) as meter:
        meter.record(table([0.25]), step=1, images=4, learning_rate=1e-3)
    assert "No space left" in caplog.text
    assert "training continues" in caplog.text


def test_a_failing_process_closes_its_bar_without_a_report(history):
    meter = Meter(accelerator_with(), history, "inner", logging_steps=9, total=9)
    meter.record(table([0.25]), step=1, images=4, learning_rate=1e-3)
    with pytest.raises(FloatingPointError), meter:
        raise FloatingPointError("not finite")
    assert history.read() == []
    meter.bar.refresh = pytest.fail
    meter.bar.close()  # a second time: it is closed, and shows nothing any more
