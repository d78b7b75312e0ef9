# SPDX-License-Identifier: Apache-2.0
"""What a drawing needs before its first step: sizes, starting noise, time steps, micro-conditions."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from diffusers_mdm.pipelines.drawing.latent_space import LatentSpaceMixin
from diffusers_mdm.pyramid import Pyramid, as_pyramid, pyramid_noise

# A pyramid, or a bare tensor where one doll is open: what host schedulers and callbacks expect.
Sample = torch.Tensor | Pyramid
# Micro-conditions by name, (2, B): those of the unconditional rows, then those of the conditional ones.
MicroConditioning = dict[str, torch.Tensor]


class DrawingSetupMixin(LatentSpaceMixin):
    """Sizes, starting noise and time steps of a drawing, as the model and the scheduler of a pipeline want them."""

    scheduler: Any

    def num_opened_levels(self, height: int, width: int, num_frames: int | None = None) -> int:
        """How many dolls are opened for a picture or a clip; arguments as in `level_shapes`."""
        sides, side = self.picture_sides, max(height, width)
        if num_frames is None or num_frames == 1:
            return sides.index(side) + 1
        return list(zip(sides, self.unet.level_frames, strict=True)).index((side, num_frames)) + 1

    def level_shapes(
        self, num_images: int, height: int, width: int, num_frames: int | None = None
    ) -> list[tuple[int, ...]]:
        """Shapes of the dolls that are opened for a picture or a clip, innermost first.

        Args:
            num_images: B.
            height: pixels of the outermost opened doll's pictures; see `check_inputs` for what is possible.
            width: pixels of the outermost opened doll's pictures.
            num_frames: frames of its clips; None for pictures.

        Returns:
            `(B, C, H_i, W_i)`, or of clips `(B, C, F_i, H_i, W_i)`.
        """
        num_levels = self.num_opened_levels(height, width, num_frames)
        ratios, frames = self.unet.level_ratios[:num_levels], self.unet.level_frames[:num_levels]
        shrunk = ratios[-1] * self.vae_scale_factor
        shapes: list[tuple[int, ...]] = []
        for ratio, count in zip(ratios, frames, strict=True):
            axis = () if num_frames is None else (1 if num_frames == 1 else count,)
            sides = height * ratio // shrunk, width * ratio // shrunk
            shapes.append((num_images, self.unet.config.in_channels, *axis, *sides))
        return shapes

    def prepare_noise(
        self,
        num_images: int,
        height: int,
        width: int,
        dtype: torch.dtype,
        device: torch.device,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Sample | None = None,
        num_frames: int | None = None,
    ) -> Pyramid:
        """Draw noise of unit variance for every opened doll, level 0 first, or take what is given.

        Arguments as in `prepare_latents`.
        """
        if latents is None:
            return pyramid_noise(self.level_shapes(num_images, height, width, num_frames), generator, device, dtype)
        return [level.to(device, dtype) for level in as_pyramid(latents)[0]]

    def as_sample(self, noise: Pyramid) -> Sample:
        """Make noise of unit variance the sample that the scheduler starts from.

        Args:
            noise: levels `(B, C, H_i, W_i)`, innermost first.

        Returns:
            The pyramid, or a bare tensor where one doll is opened.
        """
        levels = [level * self.scheduler.init_noise_sigma for level in noise]
        return levels[0] if len(levels) == 1 else levels

    def noised(self, clean: Pyramid, noise: Pyramid, timestep: torch.Tensor, *, bare: bool) -> Pyramid:
        """Pictures as they are at a time step of the process.

        Args:
            clean: levels in [-1, 1], or of latents, level 0 and those around it.
            noise: N(0, 1), the same shapes.
            timestep: t.
            bare: whether the samples between the steps are a bare tensor; the scheduler is given one then.
        """
        # One time step of shape (1,) is what the schedulers of the host take for all rows.
        if bare:
            return [self.scheduler.add_noise(clean[0], noise[0], timestep.reshape(1))]
        return self.scheduler.add_noise(clean, noise, timestep.reshape(1))

    def noised_sample(self, clean: Pyramid, noise: Pyramid, timestep: torch.Tensor) -> Sample:
        """Make noised pictures the sample that the scheduler goes on from; a bare tensor where one doll is opened.

        Args:
            clean: every opened level, in [-1, 1] or of latents.
            noise: N(0, 1), the same shapes.
            timestep: t.
        """
        bare = len(clean) == 1
        noised = self.noised(clean, noise, timestep, bare=bare)
        return noised[0] if bare else noised

    def weaken(self, schedule: torch.Tensor, strength: float) -> torch.Tensor:
        """Keep the last time steps of a schedule, and tell the scheduler where the drawing begins.

        Args:
            schedule: time steps, descending.
            strength: which share of them to keep, rounded down; above 0 one is kept at least.
        """
        kept = max(int(len(schedule) * strength), 1) if strength > 0 else 0
        skipped = len(schedule) - kept
        if kept and hasattr(self.scheduler, "set_begin_index"):
            self.scheduler.set_begin_index(skipped)
        return schedule[skipped:]

    def prepare_latents(
        self,
        num_images: int,
        height: int,
        width: int,
        dtype: torch.dtype,
        device: torch.device,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Sample | None = None,
        num_frames: int | None = None,
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
            num_frames: frames of clips; None for pictures.

        Returns:
            The pyramid, or a bare tensor where one doll is opened.
        """
        noise = self.prepare_noise(num_images, height, width, dtype, device, generator, latents, num_frames)
        return self.as_sample(noise)

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
