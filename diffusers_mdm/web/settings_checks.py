# SPDX-License-Identifier: Apache-2.0
"""Checks of settings that a visitor or a link gave; the page shows the messages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from diffusers_mdm.checked_values import describe, is_number, is_whole_number

from .limits import Limits
from .served_model import ServedModel
from .settings import Settings
from .tasks import TASKS, UPSCALE

HIGHEST_SEED = 2**32 - 1
MAX_GUIDANCE = 50.0


def checked(settings: Settings, model: ServedModel, limits: Limits) -> Settings:
    """Return settings in which every value has its type and is within the limits.

    Args:
        settings: values as a visitor or a link gave them.
        model: the model to draw with.
        limits: the most that may be asked for.

    Raises:
        ValueError: a sentence for the visitor.
    """
    if settings.task not in TASKS:
        raise ValueError(f"There is no task {describe(settings.task)}; choose one of {', '.join(TASKS)}.")
    if TASKS[settings.task] not in model.tasks:
        able = ", ".join(task.title for task in model.tasks)
        raise ValueError(f"{model.name} cannot do this; it can do: {able}. Choose another model or another tab.")
    if settings.solver not in model.solvers:
        raise ValueError(f"The solver is {describe(settings.solver)}; choose one of {', '.join(model.solvers)}.")
    level = _level(settings, model)
    return Settings(
        task=settings.task,
        model=model.name,
        prompt=_text(settings.prompt, "prompt", limits) if model.reads_text else "",
        negative_prompt=_text(settings.negative_prompt, "negative prompt", limits) if model.reads_text else "",
        label=_label(settings.label, model),
        level=level,
        steps=_count(settings.steps, "The number of steps", limits.steps),
        solver=settings.solver,
        guidance=_guidance(settings.guidance, level + 1),
        images=_count(settings.images, "The number of images", limits.images),
        seed=_seed(settings.seed),
        strength=_number(settings.strength, "The strength", 1.0),
    )


def _level(settings: Settings, model: ServedModel) -> int:
    offered = model.levels(settings.task)
    if not is_whole_number(settings.level) or int(settings.level) not in offered:
        names = ", ".join(offered.values())
        is_inside = settings.task == UPSCALE.name and not model.sees_image
        first = " (the level inside it is your image)" if is_inside else ""
        raise ValueError(f"There is no level {describe(settings.level)} to stop at; choose one of {names}{first}.")
    return int(settings.level)


def _text(text: Any, name: str, limits: Limits) -> str:
    if not isinstance(text, str):
        raise ValueError(f"The {name} is {describe(text)}; write a text.")
    if len(text) > limits.prompt_length:
        raise ValueError(
            f"The {name} has {len(text)} characters; this page takes {limits.prompt_length}. Shorten it, please."
        )
    return text.strip()


def _label(label: Any, model: ServedModel) -> str:
    if not model.has_classes:
        return ""
    name = str(label or "").strip()
    if not name:
        raise ValueError("Choose a class.")
    if name not in model.labels:
        model.class_number(name)
    return name


def _whole(value: Any) -> int | None:
    """Convert a number from a form, which may be a float without a fraction; None if it is not a whole number."""
    return int(value) if is_number(value) and float(value).is_integer() else None


def _count(value: Any, name: str, most: int) -> int:
    number = _whole(value)
    if number is None or not 1 <= number <= most:
        raise ValueError(f"{name} is {_shown(value)}; it has to be a whole number from 1 to {most}.")
    return number


def _seed(value: Any) -> int:
    number = _whole(value)
    if number is None or not 0 <= number <= HIGHEST_SEED:
        raise ValueError(f"The seed is {_shown(value)}; it has to be a whole number from 0 to {HIGHEST_SEED}.")
    return number


def _number(value: Any, name: str, most: float) -> float:
    if not is_number(value, 0, most):
        raise ValueError(f"{name} is {_shown(value)}; it has to be a number from 0 to {most:g}.")
    return float(value)


def _guidance(scales: Sequence[Any], num_levels: int) -> tuple[float, ...]:
    """Return one scale for each drawn level; those of further levels are dropped, and the last one is repeated."""
    if not scales:
        raise ValueError("There is no guidance scale; give one for all levels, or one for each.")
    checked_scales = [_number(scale, "The guidance", MAX_GUIDANCE) for scale in scales]
    padded = checked_scales + checked_scales[-1:] * num_levels
    return tuple(padded[:num_levels])


def _shown(value: Any) -> str:
    return "missing" if value is None or value == "" else describe(value)
