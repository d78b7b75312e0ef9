# SPDX-License-Identifier: Apache-2.0
"""A model that the page offers, with a pipeline for each task and solver."""

from __future__ import annotations

import threading
from typing import Any

from diffusers_mdm.pipelines import (
    MDMClassConditionalPipeline,
    MDMImg2ImgPipeline,
    MDMInpaintPipeline,
    MDMPipeline,
    MDMSuperResolutionPipeline,
    MDMUnconditionalPipeline,
    MDMUpscalePipeline,
    MDMVideoPipeline,
)
from diffusers_mdm.pipelines.drawing.request import PUBLISHED_DEFAULTS
from diffusers_mdm.pipelines.pipeline_base import MDMPipelineBase
from diffusers_mdm.schedulers import MatryoshkaScheduler
from diffusers_mdm.schedulers.reverse_steps import ALGORITHMS

from .limits import Limits
from .settings import ANCESTRAL, AS_SAVED, SOLVERS
from .tasks import CLASSES, CLIPS, EDIT, PLAIN, TEXT, UPSCALE, tasks_of

PIPELINES: dict[str, type[MDMPipelineBase]] = {
    TEXT.name: MDMPipeline,
    CLASSES.name: MDMClassConditionalPipeline,
    PLAIN.name: MDMUnconditionalPipeline,
    UPSCALE.name: MDMUpscalePipeline,
    EDIT.name: MDMImg2ImgPipeline,
    CLIPS.name: MDMVideoPipeline,
}


class ServedModel:
    """A model, its abilities and its pipelines, which share all weights.

    Args:
        name: on the page and in permalinks.
        pipeline: as it was loaded.
        limits: the most that visitors may ask for; levels beyond `limits.side` are not offered.

    Raises:
        ValueError: no level is within the limits.
    """

    def __init__(self, name: str, pipeline: MDMPipelineBase, limits: Limits | None = None) -> None:
        self.name = name
        self.pipeline = pipeline
        self.in_use = threading.Lock()
        self.sides = pipeline.image_sides
        self.frames = pipeline.unet.level_frames
        self._most = (limits or Limits()).side
        if self.sides[0] > self._most:
            raise ValueError(
                f"The smallest images of {name} have {self.sides[0]} pixels, but the limit is {self._most}. Raise it "
                "with --max_side."
            )
        config = pipeline.unet.config
        self.reads_text = config.cross_attention_dim is not None
        self.has_classes = config.num_class_embeds is not None
        self.is_guided = self.reads_text or self.has_classes
        # A model of one level that enlarges what it sees, or one that draws around an inner level.
        self.sees_image = isinstance(pipeline, MDMSuperResolutionPipeline)
        tasks = tasks_of(pipeline.unet)
        self.tasks = tuple(task for task in tasks if self.levels(task.name))
        self.labels = self._labels()
        own = isinstance(pipeline.scheduler, MatryoshkaScheduler)
        self.solvers: tuple[str, ...] = SOLVERS if own else (AS_SAVED,)
        self._made: dict[tuple[type[MDMPipelineBase], str], MDMPipelineBase] = {}

    def _labels(self) -> tuple[str, ...]:
        """Return the names of all classes, or their numbers if they have none, without the null class."""
        if not self.has_classes:
            return ()
        names = {int(key): name for key, name in (self.pipeline.config.get("id2label") or {}).items()}
        count = self.pipeline.unet.config.num_class_embeds - 1
        if not names:
            return tuple(map(str, range(count)))
        named = [names[number].split(",")[0].strip() for number in range(count) if number in names]
        return tuple(sorted(name for name in named if named.count(name) == 1))

    def class_number(self, name: str) -> int:
        """Return the number of a class.

        Args:
            name: its name or its number as text.

        Raises:
            ValueError: there is no such class; similar names are suggested.
        """
        classes = self.pipeline_for(CLASSES.name).classes
        return classes.numbers(int(name) if name.isdecimal() else name)[0]

    @property
    def level_names(self) -> dict[int, str]:
        """The levels within the limits, by number, innermost first."""
        is_video = self.pipeline.unet.config.num_frames is not None
        return {
            index: f"{side} px" + (f", {frames} frame{'s' * (frames > 1)}" if is_video else "")
            for index, (side, frames) in enumerate(zip(self.sides, self.frames, strict=True))
            if side <= self._most
        }

    def levels(self, task: str) -> dict[int, str]:
        """Return the levels that a task can stop at, with their names, innermost first.

        Args:
            task: name of the task; upscaling from the innermost level cannot stop there.
        """
        first = 1 if task == UPSCALE.name and not self.sees_image else 0
        return {index: name for index, name in self.level_names.items() if index >= first}

    def default(self, task: str, name: str) -> Any:
        """Return a default setting of the model's folder, or else that of the task.

        Args:
            task: name of the task.
            name: a key of `drawing_defaults`, such as "num_inference_steps".
        """
        own, made = self.pipeline.config.get("drawing_defaults") or {}, self.pipeline_class(task)
        fallback = made._published_defaults.get(name, PUBLISHED_DEFAULTS[name])
        return own.get(made._defaults_prefix + name, own.get(name, fallback))

    def pipeline_class(self, task: str, masked: bool = False) -> type[MDMPipelineBase]:
        """Return the class of the pipeline of a task; arguments as in `pipeline_for`."""
        if task == UPSCALE.name and self.sees_image:
            return MDMSuperResolutionPipeline
        return MDMInpaintPipeline if masked and task == EDIT.name else PIPELINES[task]

    def pipeline_for(self, task: str, solver: str = AS_SAVED, masked: bool = False) -> Any:
        """Return the pipeline of a task, which shares the weights of all others.

        Args:
            task: name of the task.
            solver: one of `solvers`.
            masked: for edits, whether only a part of the image is repainted.
        """
        made = self.pipeline_class(task, masked)
        scheduler_name = {ANCESTRAL: "ddim"}.get(solver, solver)
        key = (made, scheduler_name)
        if key not in self._made:
            changes = {} if scheduler_name == AS_SAVED else {"scheduler": self._scheduler(scheduler_name)}
            pipeline = made.from_pipe(self.pipeline, **changes)
            pipeline.set_progress_bar_config(disable=True)
            self._made[key] = pipeline
        return self._made[key]

    def _scheduler(self, algorithm: str) -> MatryoshkaScheduler:
        config = self.pipeline.scheduler.config
        # The two-step solver needs steps that are even in log SNR at every level.
        spacing = "log_snr" if algorithm != ALGORITHMS[0] else config["timestep_spacing"]
        return MatryoshkaScheduler.from_config(config, algorithm=algorithm, timestep_spacing=spacing)
