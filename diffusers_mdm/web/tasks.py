# SPDX-License-Identifier: Apache-2.0
"""The tasks of the page, one per tab, and which of them a model can do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from diffusers_mdm.models import NestedUNetModel


@dataclass(frozen=True)
class Task:
    """A tab of the page.

    Attributes:
        name: in permalinks.
        title: of the tab.
        explanation: a sentence at the top of the tab.
        takes_image: whether the visitor has to give an image.
    """

    name: str
    title: str
    explanation: str
    takes_image: bool = False


TEXT = Task("text", "Text to image", "Draws a prompt at every resolution of the model at once.")
CLASSES = Task("classes", "Classes", "Draws a class of images that the model was trained on.")
PLAIN = Task("plain", "Images", "Draws images like those that the model was trained on.")
UPSCALE = Task(
    "upscale", "Upscale", "Draws larger levels around your image, which is first reduced to the size of a level.", True
)
EDIT = Task(
    "edit",
    "Edit",
    "Changes your image as the prompt says. Paint over a part of it to change only that part; without paint, "
    "all of it changes, by as much as the strength says.",
    True,
)
CLIPS = Task("clips", "Clips", "Draws a short clip, whose levels differ in size and in the number of frames.")
TASKS = {task.name: task for task in (TEXT, CLASSES, PLAIN, UPSCALE, EDIT, CLIPS)}


def tasks_of(unet: NestedUNetModel) -> tuple[Task, ...]:
    """Return what a model can do, in the order of the tabs.

    Args:
        unet: the model. One with more input than output channels sees a small image, which it enlarges.
    """
    config = unet.config
    if config.num_frames is not None:
        return (CLIPS,)
    if config.in_channels != config.out_channels:
        return (UPSCALE,)
    able = [PLAIN]
    if config.num_class_embeds is not None:
        able = [CLASSES]
    elif config.cross_attention_dim is not None:
        able = [TEXT]
    if len(unet.sample_sizes) > 1:
        able.append(UPSCALE)
    return (*able, EDIT)


def tasks_of_all(served: Sequence[tuple[Task, ...]]) -> tuple[Task, ...]:
    """Return every task that at least one model can do, in the order of the tabs."""
    return tuple(task for task in TASKS.values() if any(task in able for able in served))
