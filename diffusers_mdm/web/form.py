# SPDX-License-Identifier: Apache-2.0
"""The fields of the page, and how they follow the selected task and model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import gradio as gr

from .served_model import ServedModel
from .settings import AS_SAVED, Settings
from .tasks import EDIT, TASKS, UPSCALE

Updates = dict[Any, Any]
SOLVER_TITLES = {
    AS_SAVED: "As saved",
    "ddim": "DDIM",
    "ancestral": "Ancestral (new noise at every step)",
    "dpmsolver++": "DPM-Solver++ (few steps)",
}


@dataclass
class Form:
    """The fields in which a visitor says what to draw.

    Attributes:
        task: name of the selected tab, kept by the server for each open page.
        tabs: the tabs.
        model: names of the models that can do the task.
        prompt: text.
        negative_prompt: text.
        label: class.
        upscale_image: path of the image to upscale.
        edit_image: the image to edit, with painted layers.
        strength: of edits.
        level: number of the outermost level to draw.
        steps: denoising steps.
        solver: one of the solvers of the model.
        guidance: one for each level.
        images: how many to draw.
        seed: of the first image.
        new_seed: whether to choose another seed for each drawing.
    """

    task: gr.State
    tabs: gr.Tabs
    model: gr.Dropdown
    prompt: gr.Textbox
    negative_prompt: gr.Textbox
    label: gr.Dropdown
    upscale_image: gr.Image
    edit_image: gr.ImageEditor
    strength: gr.Slider
    level: gr.Radio
    steps: gr.Number
    solver: gr.Dropdown
    guidance: list[gr.Number]
    images: gr.Number
    seed: gr.Number
    new_seed: gr.Checkbox

    @property
    def fields(self) -> list[Any]:
        """All fields that are read when a drawing begins."""
        return [
            *(self.task, self.model, self.prompt, self.negative_prompt, self.label),
            *(self.upscale_image, self.edit_image, self.strength, self.level, self.steps, self.solver),
            *(*self.guidance, self.images, self.seed, self.new_seed),
        ]

    @property
    def dependents(self) -> list[Any]:
        """The fields that change with the task or the model."""
        conditions = (self.prompt, self.negative_prompt, self.label)
        return [self.task, self.model, *conditions, self.level, self.steps, self.solver, *self.guidance]

    def read(self, values: Mapping[Any, Any]) -> Settings:
        """Return the settings in the fields, not checked yet.

        Args:
            values: by field.
        """
        return Settings(
            task=values[self.task],
            model=values[self.model],
            prompt=values[self.prompt] or "",
            negative_prompt=values[self.negative_prompt] or "",
            label=values[self.label] or "",
            level=values[self.level],
            steps=values[self.steps],
            solver=values[self.solver],
            guidance=tuple(values[slider] for slider in self.guidance),
            images=values[self.images],
            seed=values[self.seed],
            strength=values[self.strength],
        )

    def follow(self, task: str, model: ServedModel, models: Mapping[str, ServedModel]) -> Updates:
        """Return what the fields show after a task or a model was selected: its choices and defaults.

        Args:
            task: name of the task.
            model: the model.
            models: all models, by name.
        """
        able = [name for name, other in models.items() if TASKS[task] in other.tasks]
        levels = model.levels(task)
        labels = list(model.labels)
        updates: Updates = {
            self.task: task,
            self.model: gr.update(choices=able, value=model.name, visible=len(able) > 1),
            self.prompt: gr.update(visible=model.reads_text),
            self.negative_prompt: gr.update(visible=model.reads_text),
            self.label: gr.update(choices=labels, value=labels[0] if labels else None, visible=model.has_classes),
            self.level: gr.update(choices=[(name, index) for index, name in levels.items()], value=max(levels)),
            self.steps: gr.update(value=model.default(task, "num_inference_steps")),
            self.solver: gr.update(
                choices=[(SOLVER_TITLES.get(solver, solver), solver) for solver in model.solvers], value=AS_SAVED
            ),
        }
        default = model.default(task, "guidance_scale")
        scales = list(default) if isinstance(default, (list, tuple)) else [default]
        scales += scales[-1:] * len(self.guidance)
        return {**updates, **self._sliders(model, max(levels), scales)}

    def _sliders(self, model: ServedModel, level: int, scales: list[float] | None = None) -> Updates:
        """Return the sliders of the levels up to one, and hide the others."""
        sliders: Updates = {}
        names = {index: f"Guidance, {side} px" for index, side in enumerate(model.sides)}
        if len(set(model.sides)) < len(model.sides):
            names = {index: f"Guidance, level {index}" for index, side in enumerate(model.sides)}
        for index, slider in enumerate(self.guidance):
            changes = {} if scales is None else {"value": scales[index]}
            sliders[slider] = gr.update(
                visible=model.is_guided and index <= level, label=names.get(index, ""), **changes
            )
        return sliders

    def open_to(self, model: ServedModel, level: int) -> Updates:
        """Return the guidance sliders for the levels up to the selected one."""
        return self._sliders(model, level)

    def fill(self, settings: Mapping[str, Any], model: ServedModel, models: Mapping[str, ServedModel]) -> Updates:
        """Return fields that show given settings, and the defaults of the model for those that are not given.

        Args:
            settings: some or all fields of `Settings`, by name; "task" is one of them.
            model: the model.
            models: all models, by name.
        """
        task = settings["task"]
        updates = self.follow(task, model, models)
        updates[self.tabs] = gr.update(selected=task)
        scales = list(settings.get("guidance", ()))
        for slider, scale in zip(self.guidance, scales + scales[-1:] * len(self.guidance), strict=False):
            updates[slider] = {**updates[slider], "value": scale}
        given = settings.get("level")
        if given in model.levels(task):
            for slider, change in self.open_to(model, given).items():
                updates[slider] = {**updates[slider], "visible": change["visible"]}
        for name in ("prompt", "negative_prompt", "label", "level", "steps", "solver", "images", "seed", "strength"):
            if name in settings:
                field = getattr(self, name)
                updates[field] = {**updates.get(field, gr.update()), "value": settings[name]}
        if "seed" in settings:
            updates[self.new_seed] = gr.update(value=False)
        return updates

    @property
    def filled(self) -> list[Any]:
        """The fields that `fill` may change."""
        return [*self.dependents, self.tabs, self.images, self.seed, self.strength, self.new_seed]


def image_of(task: str, values: Mapping[Any, Any], form: Form) -> Any:
    """Return what was uploaded for a task; None for tasks without an image."""
    return {UPSCALE.name: values[form.upscale_image], EDIT.name: values[form.edit_image]}.get(task)
