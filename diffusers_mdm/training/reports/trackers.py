# SPDX-License-Identifier: Apache-2.0
"""Experiment trackers: choosing them by `--report_to`, and sending them the run's settings and samples."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from PIL import Image

NONE = "none"
ALL = "all"
# Names of the packages to install, for trackers whose package has another name.
_PACKAGES = {"comet_ml": "comet-ml"}
MAX_IMAGE_SIDE = 2048  # pixels; trackers keep every image that they are sent
MAX_IMAGES = 16  # under one name


def tracker_names(report_to: str | None) -> list[str] | None:
    """Parse a `--report_to` value: one tracker, several separated by commas, "all" installed ones, or "none".

    Returns:
        The value of `log_with` for `Accelerator`; None for no tracker.

    Raises:
        ValueError: if a name is unknown, or its package is not installed; the message says what to install.
    """
    names = [name.strip() for name in (report_to or NONE).split(",") if name.strip()]
    available = [str(tracker) for tracker in get_available_trackers()]
    if names == [NONE]:
        return None
    if names == [ALL]:
        return available or None
    known = [str(name) for name in LOGGER_TYPE_TO_CLASS]
    for name in names:
        if name not in known:
            raise ValueError(
                f"`--report_to {report_to}`: {name!r} is not a tracker; choose one or several (separated by "
                f"commas) of {', '.join(known)}, or {ALL!r}, or {NONE!r}."
            )
        if name not in available:
            raise ValueError(
                f"`--report_to {report_to}` needs a package that is not installed: pip install "
                f"{_PACKAGES.get(name, name)}, or report to {', '.join(available) or NONE}."
            )
    return list(dict.fromkeys(names))


def flatten_settings(settings: Any, prefix: str = "") -> dict[str, int | float | str | bool]:
    """Flatten nested settings (dataclasses, mappings, lists) to `{"data.path": ..., "stages.0.steps": ...}`.

    Values are numbers, text and booleans, the only types in TensorBoard's table of hyper-parameters; None and empty
    collections become text.
    """
    if dataclasses.is_dataclass(settings) and not isinstance(settings, type):
        settings = {field.name: getattr(settings, field.name) for field in dataclasses.fields(settings)}
    if isinstance(settings, (list, tuple)):
        settings = {str(index): entry for index, entry in enumerate(settings)}
    if isinstance(settings, Mapping) and settings:
        flat: dict[str, int | float | str | bool] = {}
        for name, value in settings.items():
            flat.update(flatten_settings(value, f"{prefix}.{name}" if prefix else str(name)))
        return flat
    plain = isinstance(settings, (bool, int, float, str))
    return {prefix: settings if plain else "none" if settings in (None, {}) else str(settings)}


def start_trackers(accelerator: Accelerator, project_name: str, settings: Any, step: int = 0) -> None:
    """Start the accelerator's trackers and send them the run's settings.

    Args:
        accelerator: created with `log_with=tracker_names(...)`.
        project_name: name of the project; TensorBoard's folder inside the logging folder.
        settings: any nesting of dataclasses, mappings and lists, without secrets.
        step: step from which the run continues; TensorBoard then hides entries of later steps from before a crash.
    """
    options = {"tensorboard": {"purge_step": step + 1}} if step else {}
    accelerator.init_trackers(project_name, config=flatten_settings(settings), init_kwargs=options)


def send_images(accelerator: Accelerator, name: str, images: Sequence[Image.Image], step: int) -> None:
    """Send several images of one size, such as those of a level, to every tracker that accepts images; at most
    `MAX_IMAGES`, each scaled as by `send_image`.
    """
    kept = [image.convert("RGB") for image in images[:MAX_IMAGES]]
    for image in kept:
        image.thumbnail((MAX_IMAGE_SIDE, MAX_IMAGE_SIDE))
    for tracker in accelerator.trackers:
        if tracker.name == "tensorboard":
            tracker.log_images({name: np.stack([np.asarray(image) for image in kept])}, step=step, dataformats="NHWC")
        elif hasattr(tracker, "log_images"):
            tracker.log_images({name: kept}, step=step)


def send_image(accelerator: Accelerator, name: str, image: Image.Image, step: int) -> None:
    """Send an image, scaled to at most `MAX_IMAGE_SIDE` pixels wide and high, to every tracker that accepts
    images.
    """
    send_images(accelerator, name, [image], step)
