# SPDX-License-Identifier: Apache-2.0
"""One drawing, step by step: starting noise, time steps, guided predictions, pictures."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from diffusers.image_processor import VaeImageProcessor

from diffusers_mdm.models import NestedUNetModel
from diffusers_mdm.pipelines.guidance import guide
from diffusers_mdm.pipelines.pipeline_output import Images
from diffusers_mdm.pipelines.text_encoding import RowGroup, TextFeatures
from diffusers_mdm.pyramid import Pyramid, as_pyramid, pyramid_noise

# A pyramid, or a bare tensor where one doll is open: what host schedulers and callbacks expect.
Sample = torch.Tensor | Pyramid
# Micro-conditions by name, (2, B): those of the unconditional rows, then those of the conditional ones.
MicroConditioning = dict[str, torch.Tensor]


def each_level(function: Callable[[torch.Tensor], torch.Tensor], sample: Sample) -> Sample:
    """Apply a function to every level; a bare tensor stays bare."""
    return function(sample) if isinstance(sample, torch.Tensor) else [function(level) for level in sample]


class DenoisingMixin:
    """What every MDM pipeline does between its inputs and its pictures."""

    unet: NestedUNetModel
    scheduler: Any
    image_processor: VaeImageProcessor
    _guidance_scale: float = 1.0
    _guidance_rescale: float = 0.0
    _cross_attention_kwargs: dict[str, Any] | None = None
    _num_timesteps: int = 0
    _interrupt: bool = False

    @property
    def guidance_scale(self) -> float:
        """Weight w of the guidance at the current step; a callback may change `_guidance_scale`."""
        return self._guidance_scale

    @property
    def guidance_rescale(self) -> float:
        """How far the spread of the guided prediction is brought back to that of the conditional one, 0 to 1."""
        return self._guidance_rescale

    @property
    def do_classifier_free_guidance(self) -> bool:
        """Whether the model also runs without the prompt."""
        return self._guidance_scale > 1.0

    @property
    def cross_attention_kwargs(self) -> dict[str, Any] | None:
        """Given to the model at each step, e.g. `{"scale": 0.5}` for the strength of a LoRA."""
        return self._cross_attention_kwargs

    @property
    def num_timesteps(self) -> int:
        """Number of steps of the current or last drawing."""
        return self._num_timesteps

    @property
    def interrupt(self) -> bool:
        """Set `_interrupt` in a callback to skip the remaining steps."""
        return self._interrupt

    def level_shapes(self, num_images: int, height: int, width: int) -> list[tuple[int, int, int, int]]:
        """Shapes `(B, C, H_i, W_i)` of the dolls that are opened for a picture of this size, innermost first.

        Args:
            num_images: B.
            height: pixels of the outermost opened doll; see `check_inputs` for what is possible.
            width: pixels of the outermost opened doll.
        """
        ratios = self.unet.level_ratios[: self.unet.sample_sizes.index(max(height, width)) + 1]
        channels = self.unet.config.in_channels
        return [(num_images, channels, height * ratio // ratios[-1], width * ratio // ratios[-1]) for ratio in ratios]

    def prepare_latents(
        self,
        num_images: int,
        height: int,
        width: int,
        dtype: torch.dtype,
        device: torch.device,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Sample | None = None,
    ) -> Sample:
        """Draw the starting noise of every opened doll, level 0 first, or take what is given.

        Args:
            num_images: B.
            height: pixels of the picture.
            width: pixels of the picture.
            dtype: of the samples between the steps.
            device: of the samples.
            generator: one, or one a picture; with a list a picture does not change with the batch it is drawn in.
            latents: noise of unit variance for every level, innermost first; a bare tensor where one doll is opened.

        Returns:
            The pyramid, or a bare tensor where one doll is opened.
        """
        if latents is None:
            levels = pyramid_noise(self.level_shapes(num_images, height, width), generator, device, dtype)
        else:
            levels = [level.to(device, dtype) for level in as_pyramid(latents)[0]]
        levels = [level * self.scheduler.init_noise_sigma for level in levels]
        return levels[0] if len(levels) == 1 else levels

    def retrieve_timesteps(
        self, num_inference_steps: int | None, device: torch.device, timesteps: Sequence[int] | None = None
    ) -> torch.Tensor:
        """Set the scheduler's time steps, and return them in the order of drawing.

        Args:
            num_inference_steps: how many; ignored where `timesteps` are given.
            device: of the time steps.
            timesteps: the time steps themselves, descending.

        Raises:
            ValueError: the scheduler takes no time steps of one's own.
        """
        if timesteps is None:
            self.scheduler.set_timesteps(num_inference_steps, device=device)
        elif "timesteps" in inspect.signature(self.scheduler.set_timesteps).parameters:
            self.scheduler.set_timesteps(timesteps=timesteps, device=device)
        else:
            raise ValueError(
                f"{type(self.scheduler).__name__} does not take `timesteps` of your own; pass `num_inference_steps`, "
                "or use another scheduler."
            )
        # A scheduler of the host that is told where it begins need not read its first timestep back from an
        # accelerator; `MatryoshkaScheduler` goes by the timestep of each step all the same.
        if hasattr(self.scheduler, "set_begin_index"):
            self.scheduler.set_begin_index(0)
        return self.scheduler.timesteps

    def prepare_extra_step_kwargs(
        self, generator: torch.Generator | list[torch.Generator] | None, eta: float
    ) -> dict[str, Any]:
        """Give those of `eta` and `generator` that this scheduler's `step` takes.

        Raises:
            ValueError: `eta` is not 0 and the scheduler has no use for it.
        """
        known = inspect.signature(self.scheduler.step).parameters
        if eta != 0.0 and "eta" not in known:
            raise ValueError(f"{type(self.scheduler).__name__} has no `eta` ({eta}); leave it at 0.")
        return {key: value for key, value in (("eta", eta), ("generator", generator)) if key in known}

    def prepare_micro_conditioning(
        self, micro_conditioning: Mapping[str, Any] | None, num_images: int, device: torch.device
    ) -> MicroConditioning:
        """Bring micro-conditions to `(2, B)`: those of the unconditional rows, then those of the conditional ones.

        Args:
            micro_conditioning: name to a number, B numbers (one a picture) or 2 B (unconditional rows first). A name
                that is missing takes the model's own value.
            num_images: B.
            device: of the numbers.
        """
        rows = {}
        for key, value in (micro_conditioning or {}).items():
            numbers = torch.as_tensor(value, dtype=torch.float32, device=device)
            rows[key] = (numbers.view(-1, num_images) if numbers.numel() > 1 else numbers).expand(2, num_images)
        return rows

    def predict(
        self,
        latents: Sample,
        timestep: torch.Tensor,
        text: TextFeatures,
        groups: Sequence[RowGroup],
        micro_conditioning: MicroConditioning,
    ) -> Sample:
        """Predict every opened level at once, guided where `guidance_scale` is above 1.

        Args:
            latents: what the scheduler made of the samples, B rows a level.
            timestep: one t for all rows.
            text: what the B rows are conditioned on.
            groups: which rows may go through the model together.
            micro_conditioning: from `prepare_micro_conditioning`.
        """
        if groups[0].rows is None:
            return self._predict_group(latents, timestep, text, groups[0], micro_conditioning)
        predictions = each_level(torch.empty_like, latents)
        for group in groups:
            part = self._predict_group(
                each_level(operator.itemgetter(group.rows), latents),
                timestep,
                text.select(group),
                group,
                {key: value[:, group.rows] for key, value in micro_conditioning.items()},
            )
            for whole, rows in zip(as_pyramid(predictions)[0], as_pyramid(part)[0], strict=True):
                whole[group.rows] = rows
        return predictions

    def _predict_group(
        self,
        latents: Sample,
        timestep: torch.Tensor,
        text: TextFeatures,
        group: RowGroup,
        micro_conditioning: MicroConditioning,
    ) -> Sample:
        guided = self.do_classifier_free_guidance
        dtype, sample_dtype = self.unet.dtype, as_pyramid(latents)[0][0].dtype
        features, mask = text.stack(guided)
        prediction = self.unet(
            each_level(lambda level: (torch.cat([level, level]) if guided else level).to(dtype), latents),
            timestep.expand(len(features)),
            encoder_hidden_states=features.to(dtype),
            encoder_attention_mask=mask if group.has_pads else None,
            added_cond_kwargs={
                key: value.flatten() if guided else value[1] for key, value in micro_conditioning.items()
            },
            cross_attention_kwargs=self.cross_attention_kwargs,
            return_dict=False,
        )[0]
        # Guidance multiplies rounding errors: it is done in the precision of the samples, not of the model.
        prediction = each_level(lambda level: level.to(sample_dtype), prediction)
        if not guided:
            return prediction
        w, rescale = self.guidance_scale, self.guidance_rescale
        return each_level(lambda level: guide(level.chunk(2)[0], level.chunk(2)[1], w, rescale), prediction)

    def postprocess(self, latents: Sample, output_type: str) -> list[Images]:
        """Turn the last samples into pictures, one entry a level, innermost first.

        Args:
            latents: the last samples, in [-1, 1] as far as the model got there; clipped here.
            output_type: "pil", "np" (`(B, H, W, C)` in [0, 1]), "pt" (`(B, C, H, W)` in [0, 1]) or "latent" (the
                samples as they are, not clipped).
        """
        if output_type == "latent":
            return list(as_pyramid(latents)[0])
        return [
            self.image_processor.postprocess(level.clamp(-1.0, 1.0), output_type=output_type)
            for level in as_pyramid(latents)[0]
        ]
