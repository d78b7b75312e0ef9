# SPDX-License-Identifier: Apache-2.0
"""Running a pipeline so that the levels can be watched at every step, and stopped between two steps."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from diffusers_mdm.pipelines.drawing.loop import clips, images
from diffusers_mdm.pyramid import as_pyramid

from .served_model import ServedModel
from .settings import ANCESTRAL, AS_SAVED, Settings
from .tasks import CLIPS, EDIT, PLAIN, UPSCALE

# The frames of one image (a single one) or clip.
Frames = list[Image.Image]


@dataclass(frozen=True)
class Progress:
    """The state of a drawing after a step.

    Attributes:
        step: number of finished steps.
        steps: number of all steps.
        levels: for each level, innermost first, the frames of each image.
        is_finished: whether these are the results, not previews.
    """

    step: int
    steps: int
    levels: list[list[Frames]]
    is_finished: bool = False


@dataclass(frozen=True)
class GivenImage:
    """What a visitor uploaded.

    Attributes:
        image: RGB.
        mask: white where the image is to be repainted; None for all of it.
    """

    image: Image.Image
    mask: Image.Image | None = None


def draw(
    model: ServedModel, settings: Settings, stop: threading.Event, given: GivenImage | None = None
) -> Iterator[Progress]:
    """Draw, and yield a preview after each step and at last the result; nothing more after `stop` is set.

    The pipeline runs in a thread of its own. It ends at the next step if `stop` is set or this iterator is closed, and
    only then may the next drawing with the model begin.

    Args:
        model: the model.
        settings: checked settings.
        stop: ends the drawing when it is set.
        given: the image, for tasks that take one.

    Raises:
        ValueError: what the pipeline says about its arguments.
    """
    news: queue.Queue[Progress | Exception | None] = queue.Queue()
    worker = threading.Thread(target=_run, args=(model, settings, stop, given, news), name="drawing", daemon=True)
    worker.start()
    try:
        while (latest := news.get()) is not None:
            if isinstance(latest, Exception):
                raise latest
            # A slow connection gets the newest preview, not all of them one after another.
            if stop.is_set() or (not latest.is_finished and not news.empty()):
                continue
            yield latest
    finally:
        stop.set()
        worker.join()


def _run(
    model: ServedModel,
    settings: Settings,
    stop: threading.Event,
    given: GivenImage | None,
    news: queue.Queue[Progress | Exception | None],
) -> None:
    """Run the pipeline and report its steps; the last report is None or an exception."""
    finished = 0

    def report(pipeline: Any, step: int, timestep: torch.Tensor, tensors: dict[str, Any]) -> None:
        nonlocal finished
        finished = step + 1
        if stop.is_set():
            pipeline._interrupt = True
            return
        preview = tensors["pred_original_sample"]
        levels = as_pyramid(tensors["latents"] if preview is None else preview)[0]
        news.put(Progress(finished, pipeline.num_timesteps, _frames(pipeline, levels)))

    try:
        with model.in_use:
            if not stop.is_set():
                call = _arguments(model, settings, given)
                masked = given is not None and given.mask is not None
                pipeline = model.pipeline_for(settings.task, settings.solver, masked)
                output = pipeline(**call, callback_on_step_end=report)
                if not stop.is_set():
                    is_clip = settings.task == CLIPS.name
                    levels = [_as_frames(level, is_clip) for level in output.pyramid]
                    news.put(Progress(finished, finished, levels, is_finished=True))
        news.put(None)
    except Exception as error:  # noqa: BLE001  passed on to the thread of the page
        news.put(error)


def _arguments(model: ServedModel, settings: Settings, given: GivenImage | None) -> dict[str, Any]:
    """Return the arguments of the pipeline's call."""
    task, count = settings.task, settings.images
    call: dict[str, Any] = {
        "num_inference_steps": settings.steps,
        # One generator per image, so that an image does not depend on the others.
        "generator": [torch.Generator("cpu").manual_seed(settings.seed + index) for index in range(count)],
        "output_pyramid": True,
        "callback_on_step_end_tensor_inputs": ["latents", "pred_original_sample"],
    }
    if settings.solver != AS_SAVED:
        call["eta"] = 1.0 if settings.solver == ANCESTRAL else 0.0
    elif task == UPSCALE.name and not model.sees_image:
        call["eta"] = None  # the default of the model's folder
    if model.is_guided:
        call["guidance_scale"] = list(settings.guidance)
    else:
        copies = {PLAIN.name: "batch_size", CLIPS.name: "num_videos_per_prompt"}
        call[copies.get(task, "num_images_per_prompt")] = count
    if model.reads_text:
        call |= {"prompt": [settings.prompt] * count, "negative_prompt": [settings.negative_prompt] * count}
    if model.has_classes:
        call["class_labels"] = [model.class_number(settings.label)] * count
    if given is not None:
        call |= _image_arguments(model, settings, given)
    if task != EDIT.name and not model.sees_image:
        call["height"] = model.sides[settings.level]
    if task == CLIPS.name:
        call["num_frames"] = model.frames[settings.level]
    return call


def _image_arguments(model: ServedModel, settings: Settings, given: GivenImage) -> dict[str, Any]:
    if settings.task == UPSCALE.name:
        return {"image": given.image}
    # An image with the side of a level is edited at that level.
    side, longer = model.sides[settings.level], max(given.image.size)
    size = [max(round(length * side / longer), 1) for length in given.image.size]
    image = given.image if longer == side else given.image.resize(size, Image.Resampling.LANCZOS)
    edit = {"image": image, "strength": settings.strength}
    if given.mask is None:
        return edit
    mask = given.mask if longer == side else given.mask.resize(size, Image.Resampling.BOX)
    # Every pixel of which a part was painted is repainted.
    return {**edit, "mask_image": mask.point(lambda value: 255 if value else 0)}


def _frames(pipeline: Any, levels: list[torch.Tensor]) -> list[list[Frames]]:
    """Convert predicted levels to the frames of each image."""
    if levels[0].ndim == 5:
        return [_as_frames(level, True) for level in clips(pipeline, levels, "pil")]
    return [_as_frames(level, False) for level in images(pipeline, levels, "pil")]


def _as_frames(level: Any, is_clip: bool) -> list[Frames]:
    return list(level) if is_clip else [[image] for image in level]
