# SPDX-License-Identifier: Apache-2.0
"""Experiment trackers: what `--report_to` names, the run's settings as they take them, and pictures."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from PIL import Image

NONE = "none"
ALL = "all"
# How to install what a tracker needs, where the package has another name.
_PACKAGES = {"comet_ml": "comet-ml"}
MAX_PICTURE_SIDE = 2048  # pixels; trackers keep every picture that they are sent


def tracker_names(report_to: str | None) -> list[str] | None:
    """The trackers that a `--report_to` value names: one, several with commas, "all" that are installed, or "none".

    Returns:
        What `Accelerator` takes as `log_with`; None for no tracker.

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
                f"`--report_to {report_to}`: {name!r} is no tracker; write one or several (with commas) of "
                f"{', '.join(known)}, or {ALL!r}, or {NONE!r}."
            )
        if name not in available:
            raise ValueError(
                f"`--report_to {report_to}` needs a package that is not installed: pip install "
                f"{_PACKAGES.get(name, name)}, or report to {', '.join(available) or NONE}."
            )
    return list(dict.fromkeys(names))


def flatten_settings(settings: Any, prefix: str = "") -> dict[str, int | float | str | bool]:
    """Nested settings (dataclasses, mappings, lists) as `{"data.path": ..., "stages.0.steps": ...}`.

    Values are plain numbers, texts and booleans, which is all that TensorBoard's table of hyper-parameters takes;
    None and empty collections are spelled as text.
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
    """Start the accelerator's trackers and give them the run's settings.

    Args:
        accelerator: made with `log_with=tracker_names(...)`.
        project_name: of the runs that belong together; TensorBoard's folder inside the logging folder.
        settings: any nesting of dataclasses, mappings and lists, without secrets.
        step: of the run that goes on; what TensorBoard was told of later steps, before a crash, is hidden.
    """
    options = {"tensorboard": {"purge_step": step + 1}} if step else {}
    accelerator.init_trackers(project_name, config=flatten_settings(settings), init_kwargs=options)


def send_picture(accelerator: Accelerator, name: str, picture: Image.Image, step: int) -> None:
    """Send a picture to every tracker that takes pictures, at most `MAX_PICTURE_SIDE` pixels wide and high."""
    picture = picture.convert("RGB")
    picture.thumbnail((MAX_PICTURE_SIDE, MAX_PICTURE_SIDE))
    for tracker in accelerator.trackers:
        if tracker.name == "tensorboard":
            tracker.log_images({name: np.asarray(picture)[None]}, step=step, dataformats="NHWC")
        elif hasattr(tracker, "log_images"):
            tracker.log_images({name: [picture]}, step=step)
