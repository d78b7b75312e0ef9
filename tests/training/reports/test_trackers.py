# SPDX-License-Identifier: Apache-2.0
import dataclasses
from pathlib import Path

import pytest
import yaml
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from diffusers_mdm.training.reports import trackers
from diffusers_mdm.training.reports.trackers import (
    flatten_settings,
    send_image,
    send_images,
    start_trackers,
    tracker_names,
)
from tests.training.tiny_run import tiny_recipe


class Gallery(GeneralTracker):
    """A tracker that takes images, as that of Weights & Biases does."""

    name = "gallery"
    requires_logging_directory = False

    def __init__(self):
        super().__init__()
        self.images = []

    @property
    def tracker(self):
        return self.images

    def log_images(self, values, step=None):
        self.images += [(name, step, image) for name, entries in values.items() for image in entries]


class NumbersOnly(GeneralTracker):
    """A tracker without a way to take images."""

    name = "numbers"
    requires_logging_directory = False
    tracker = None

    def __init__(self):
        super().__init__()


def accelerator_for(folder: Path, *log_with) -> Accelerator:
    return Accelerator(cpu=True, log_with=list(log_with), project_dir=folder)


def steps(folder: Path, tag: str) -> list[int]:
    return [event.step for event in EventAccumulator(str(folder)).Reload().Scalars(tag)]


@pytest.mark.parametrize(
    ("report_to", "expected"),
    [("tensorboard", ["tensorboard"]), ("tensorboard, tensorboard", ["tensorboard"]), ("none", None), (None, None)],
)
def test_names_are_what_accelerate_takes(report_to, expected):
    assert tracker_names(report_to) == expected
    assert len(Accelerator(cpu=True, log_with=tracker_names(report_to), project_dir="unused").log_with) == len(
        expected or []
    )


def test_all_are_those_that_are_installed(monkeypatch):
    assert "tensorboard" in tracker_names("all")
    monkeypatch.setattr(trackers, "get_available_trackers", list)
    assert tracker_names("all") is None


def test_a_missing_package_is_named_with_the_way_to_get_it(monkeypatch):
    monkeypatch.setattr(trackers, "get_available_trackers", lambda: ["tensorboard"])
    with pytest.raises(ValueError, match=r"pip install wandb, or report to tensorboard"):
        tracker_names("tensorboard,wandb")
    with pytest.raises(ValueError, match=r"pip install comet-ml"):
        tracker_names("comet_ml")


def test_an_unknown_tracker_is_answered_with_those_that_exist():
    with pytest.raises(ValueError, match=r"'tensorbord' is not a tracker.*tensorboard.*wandb.*'all'.*'none'"):
        tracker_names("tensorbord")


def test_settings_are_flattened_to_plain_values():
    @dataclasses.dataclass
    class Inner:
        rate: float
        path: Path
        limit: int | None = None

    nested = {"inner": Inner(0.1, Path("images")), "sizes": (8, 16), "words": [], "flag": True}
    assert flatten_settings(nested) == {
        "inner.rate": 0.1,
        "inner.path": "images",
        "inner.limit": "none",
        "sizes.0": 8,
        "sizes.1": 16,
        "words": "none",
        "flag": True,
    }


def test_tensorboard_takes_a_whole_recipe(tmp_path):
    accelerator = accelerator_for(tmp_path, "tensorboard")
    start_trackers(accelerator, "project", tiny_recipe(tmp_path))
    accelerator.end_training()
    (stored,) = (tmp_path / "project").rglob("hparams.yml")
    settings = yaml.safe_load(stored.read_text())
    assert settings["name"] == "tiny"
    assert settings["stages.1.batch_fractions.1"] == 0.5


def test_a_resumed_run_hides_what_came_after_its_checkpoint(tmp_path):
    for first, last in ((1, 5), (4, 6)):  # five steps, a crash, and on from the checkpoint of step 3
        accelerator = accelerator_for(tmp_path, "tensorboard")
        start_trackers(accelerator, "project", {"seed": 0}, step=first - 1)
        for step in range(first, last + 1):
            accelerator.log({"loss": float(step)}, step=step)
        accelerator.end_training()
        if first == 1:  # files of one second are read in the order of their process' numbers, as text
            (file,) = (tmp_path / "project").glob("events*")
            file.rename(file.with_name("events.out.tfevents.1.before"))
    assert steps(tmp_path / "project", "loss") == [1, 2, 3, 4, 5, 6]


def test_trackers_that_take_images_get_them_small_enough():
    gallery = Gallery()
    accelerator = Accelerator(cpu=True, log_with=[gallery, NumbersOnly()])
    start_trackers(accelerator, "project", {})
    grid = Image.new("RGBA", (4096, 1024), "red")
    send_image(accelerator, "validation", grid, step=3)
    ((name, step, image),) = gallery.images
    assert (name, step, image.mode, image.size) == ("validation", 3, "RGB", (2048, 512))
    assert grid.size == (4096, 1024)


def test_images_of_a_level_are_sent_under_one_name(tmp_path):
    gallery = Gallery()
    accelerator = Accelerator(cpu=True, log_with=[gallery, "tensorboard"], project_dir=tmp_path)
    start_trackers(accelerator, "project", {})
    send_images(
        accelerator, "validation/level_0_8px", [Image.new("RGB", (8, 8), color) for color in ("red", "blue")], 3
    )
    accelerator.end_training()
    assert [(name, step, image.getpixel((0, 0))) for name, step, image in gallery.images] == [
        ("validation/level_0_8px", 3, (255, 0, 0)),
        ("validation/level_0_8px", 3, (0, 0, 255)),
    ]
    events = EventAccumulator(str(tmp_path / "project")).Reload()
    assert events.Tags()["images"] == ["validation/level_0_8px"]
