# SPDX-License-Identifier: Apache-2.0
"""Checking in advance whether a scheduler of diffusers can be used to generate a single level.

The models predict noise, velocity or the clean image at one of T discrete timesteps. Schedulers for anything else
(flow matching, consistency models, continuous noise levels, tokens, inversion) would fail in the middle, or produce
only noise.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch

from diffusers_mdm.pipelines.drawing.request import Request
from diffusers_mdm.pipelines.drawing.setup import copied_scheduler

_PREDICTIONS = ("epsilon", "sample", "v_prediction")
_USED_PARTS = ("init_noise_sigma", "set_timesteps", "scale_model_input", "step")
_STEP_INPUTS = {"model_output", "timestep", "sample"}
_FAILURES = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)
_USABLE = "MatryoshkaScheduler, or for a single level one like DDIMScheduler or DPMSolverMultistepScheduler"


def check_other_scheduler(scheduler: Any, num_levels: int, sides: Sequence[int], request: Request) -> None:
    """Check that a scheduler of diffusers supports a request.

    Args:
        scheduler: scheduler of the pipeline, which is not modified.
        num_levels: number of levels to generate.
        sides: sides of all levels, innermost first.
        request: the request.

    Raises:
        ValueError: says what it does not support, and what to use instead.
    """
    name = type(scheduler).__name__
    if num_levels > 1:
        raise ValueError(
            f"{name} supports a single level, but {request.height} x {request.width} pixels need {num_levels} "
            f"levels; use MatryoshkaScheduler, or generate {sides[0]} pixels (the innermost level)."
        )
    check_draws_one_level(scheduler, request)
    if request.eta != 0 and (request.eta is None or "eta" not in inspect.signature(scheduler.step).parameters):
        raise ValueError(f"{name} has no `eta` of {request.eta}; leave it at 0.")
    if request.timesteps is not None and "timesteps" not in inspect.signature(scheduler.set_timesteps).parameters:
        raise ValueError(
            f"{name} does not take custom `timesteps`; pass `num_inference_steps`, or use another scheduler."
        )
    if request.num_resampling_steps > 1:
        raise ValueError(
            f"`num_resampling_steps` is {request.num_resampling_steps}, but {name} cannot go back to more noise; use "
            "MatryoshkaScheduler, or `num_resampling_steps=1`."
        )


def check_draws_one_level(scheduler: Any, request: Request) -> None:
    """Check that a scheduler works with a model of this kind.

    Args:
        scheduler: scheduler of the pipeline, which is not modified.
        request: has the number of steps.

    Raises:
        ValueError: says why it does not, and which schedulers do.
    """
    reason = _why_of_another_kind(scheduler, request) or _why_not_on_trial(scheduler, request)
    if reason is not None:
        raise ValueError(f"{type(scheduler).__name__} cannot be used with this model: {reason}. Use {_USABLE}.")


def _why_of_another_kind(scheduler: Any, request: Request) -> str | None:
    """Return why a scheduler is for models of another kind; None if it is not."""
    # Noise has to be added to input images.
    used = [*_USED_PARTS, *(["add_noise"] if request.images is not None else [])]
    missing = [f"`{name}`" for name in used if not hasattr(scheduler, name)]
    if not hasattr(scheduler, "alphas_cumprod"):
        return (
            "it has no noise schedule over discrete timesteps (`alphas_cumprod`), like those for flow matching, "
            "consistency models and continuous noise levels"
        )
    if missing:
        return f"it has no {', '.join(missing)}"
    needed = [
        name
        for name, parameter in inspect.signature(scheduler.step).parameters.items()
        if parameter.default is parameter.empty and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
    ]
    further = [name for name in needed if name not in _STEP_INPUTS]
    if further:
        return f"its `step` needs {' and '.join(f'`{name}`' for name in further)} besides a prediction and a sample"
    kind = scheduler.config.get("prediction_type", "epsilon")
    if not isinstance(kind, str):
        return f"its config has one kind of prediction per level ({', '.join(kind)}), but it supports a single level"
    if kind not in _PREDICTIONS or scheduler.config.get("use_flow_sigmas"):
        return f"it expects predictions of the kind {'flow' if kind in _PREDICTIONS else kind!r}"
    return None


def _why_not_on_trial(scheduler: Any, request: Request) -> str | None:
    """Return why a copy of the scheduler fails at its first step, or goes the wrong way; None if it does not."""
    trial, own = copied_scheduler(scheduler), {}
    parameters = inspect.signature(trial.step).parameters
    if "generator" in parameters:
        own["generator"] = torch.Generator()
    sample, last = torch.zeros(1, 1, 4, 4), len(scheduler.alphas_cumprod) - 1
    try:
        with torch.random.fork_rng(devices=[]):
            if request.timesteps is not None and "timesteps" in inspect.signature(trial.set_timesteps).parameters:
                trial.set_timesteps(timesteps=request.timesteps)
            else:
                trial.set_timesteps(request.num_inference_steps or len(request.timesteps or ()))
            first, end = trial.timesteps[0], trial.timesteps[-1]
            if not all(0 <= float(timestep) <= last for timestep in trial.timesteps):
                return (
                    f"its timesteps run from {float(first):g} to {float(end):g}, those of the model from {last} to 0"
                )
            if first < end:
                return "it goes from images to noise"
            after = trial.step(trial.scale_model_input(sample, first), first, sample, **own).prev_sample
    # The error of another library's scheduler is the reason.
    except _FAILURES as error:
        reason = str(error).splitlines()[0] if str(error) else "no reason given"
        return f"its first step fails ({type(error).__name__}: {reason.rstrip('.')})"
    return None if after.shape == sample.shape else "its steps change the size of the sample"
