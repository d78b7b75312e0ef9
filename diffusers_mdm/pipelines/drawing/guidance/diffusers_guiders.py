# SPDX-License-Identifier: Apache-2.0
"""Adapter for diffusers' guiders that work on predictions with and without the prompt."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.guiders import AutoGuidance, BaseGuidance

from diffusers_mdm.pipelines.drawing.guidance.method import GuidanceMethod, LevelStep

_PREDICTIONS = {"pred_cond", "pred_uncond"}


class DiffusersGuider(GuidanceMethod):
    """One of diffusers' guiders for one level, with its own scale, interval and state.

    Args:
        guider: e.g. `diffusers.guiders.AdaptiveProjectedGuidance(guidance_scale=5.0)`.

    Raises:
        ValueError: it changes the layers of a transformer, which a `NestedUNetModel` does not have.
    """

    has_own_scale = True

    def __init__(self, guider: BaseGuidance) -> None:
        if not isinstance(guider, BaseGuidance):
            raise ValueError(f"`guider` is of type {type(guider).__name__}; expected a guider of diffusers.")
        if isinstance(guider, AutoGuidance) or not set(guider._input_predictions or ()) <= _PREDICTIONS:
            raise ValueError(
                f"{type(guider).__name__} guides by running a transformer a second time with some of its layers "
                f"changed, but a NestedUNetModel has no such layers; use a guider of predictions with and without "
                f"the prompt "
                "(such as AdaptiveProjectedGuidance), or a weaker model (`guidance_unet`)."
            )
        self.guider = guider

    def new(self) -> DiffusersGuider:
        """Return a copy without state."""
        return DiffusersGuider(self.guider.new())

    def needs_other(self, at: LevelStep) -> bool:
        """Return whether the guider needs two predictions at this step."""
        self.guider.set_state(at.step, at.num_steps, at.noise.timestep)
        return self.guider.num_conditions > 1

    def combine(self, conditional: torch.Tensor, other: torch.Tensor | None, at: LevelStep) -> torch.Tensor:
        """Return the guider's combination of the predictions; the call's `guidance_scale` is not used."""
        self.guider.set_state(at.step, at.num_steps, at.noise.timestep)
        states: list[Any] = self.guider.prepare_inputs({})
        for state in states:
            is_other = getattr(state, self.guider._identifier_key) == "pred_uncond"
            state.noise_pred = other if is_other else conditional
        return self.guider(states).pred
