# SPDX-License-Identifier: Apache-2.0
"""The forward process z_t^i = alpha_t^i x^i + sigma_t^i eps^i of all levels, and what it gives a loss: the targets of
predictions, and their errors.

Glossary: as in `predictions`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from ..pyramid import Pyramid, in_full_precision, matching_levels
from .predictions import (
    LevelPrediction,
    PyramidPredictions,
    Sample,
    amplitudes_per_sample,
    error_factor,
    shift_signal_power,
)

Change = Callable[[torch.Tensor], torch.Tensor]


class PyramidForwardProcess(PyramidPredictions):
    """The forward process of a pyramid, as a base class of `MatryoshkaScheduler`, which adds the config and the
    reverse process.
    """

    _moved_table: torch.Tensor | None = None

    def _table_on(self, device: torch.device) -> torch.Tensor:
        """Return `alphas_cumprod` on a device, to which it is moved only once."""
        if self.alphas_cumprod.device == device:
            return self.alphas_cumprod
        if self._moved_table is None or self._moved_table.device != device:
            self._moved_table = self.alphas_cumprod.to(device)
        return self._moved_table

    def alpha_cumprod(self, timesteps: torch.Tensor, ratio: float = 1.0) -> torch.Tensor:
        """Return the signal power (alpha_bar) of a level.

        Args:
            timesteps: integers in [0, T), any shape.
            ratio: ratio of the level to level 0, at least 1 (see `level_ratios`).

        Returns:
            A float32 tensor in [0, 1] with the shape and device of `timesteps`.
        """
        if timesteps.dtype.is_floating_point or timesteps.dtype.is_complex or timesteps.dtype == torch.bool:
            raise ValueError(f"`timesteps` are {timesteps.dtype}; expected whole numbers.")
        # Reading values on an accelerator would make every training step wait for it.
        if timesteps.device.type == "cpu" and timesteps.numel():
            low, high = int(timesteps.min()), int(timesteps.max())
            if low < 0 or high >= len(self):
                raise ValueError(f"`timesteps` run from {low} to {high}; expected 0 to {len(self) - 1}.")
            if self.alphas_cumprod[high].isnan():
                raise ValueError(
                    f"Timestep {high} has no signal power, because betas up to it exceed 1; lower `beta_end` or "
                    "correct `trained_betas`."
                )
        power = self._table_on(timesteps.device)[timesteps.long()]
        if self.config.level_scaling == "rescale":
            return power
        return shift_signal_power(power, max(ratio, 1.0), self.config.shift_power)

    def level_alphas_cumprod(self, pyramid: Sample, timesteps: torch.Tensor) -> list[torch.Tensor]:
        """Return the signal power (alpha_bar) of every sample of every level.

        Args:
            pyramid: levels `(B_i, ...)`, of which only the shapes are used.
            timesteps: `(B_0,)`, or one number for all samples.

        Returns:
            Tensors `(B_i,)`, float32, innermost level first.
        """
        levels, ratios, _ = self._levels(pyramid, "pyramid")
        timesteps = as_timesteps(timesteps)
        each = timesteps if timesteps.numel() != 1 else timesteps.reshape(1).expand(len(levels[0]))
        if each.shape != levels[0].shape[:1]:
            raise ValueError(
                f"`timesteps` has shape {tuple(timesteps.shape)}; expected one timestep, or one for each sample of "
                f"level 0: ({len(levels[0])},)."
            )
        return [self.alpha_cumprod(each[: len(level)], ratio) for level, ratio in zip(levels, ratios, strict=True)]

    def add_noise(self, original_samples: Sample, noise: Sample, timesteps: torch.Tensor) -> torch.Tensor | Pyramid:
        """Compute z_t^i = alpha_t^i x^i + sigma_t^i eps^i for every level.

        Args:
            original_samples: clean images in [-1, 1].
            noise: N(0, 1) noise of the same shapes.
            timesteps: `(B_0,)`, of which level i uses the first B_i; or one number for all samples.
        """
        return self._over_levels(noisy_sample, original_samples, noise, timesteps)

    def _over_levels(
        self, mix: Callable[..., torch.Tensor], clean: Sample, noise: Sample, timesteps: torch.Tensor
    ) -> torch.Tensor | Pyramid:
        levels, ratios, bare = self._levels(clean, "the clean sample")
        noises = matching_levels(noise, levels, "noise")
        powers = self.level_alphas_cumprod(clean, as_timesteps(timesteps).to(levels[0].device))
        mixed = [
            mix(level, eps, power, self._image_scale(ratio))
            for level, eps, power, ratio in zip(levels, noises, powers, ratios, strict=True)
        ]
        return mixed[0] if bare else mixed

    def get_velocity(self, sample: Sample, noise: Sample, timesteps: torch.Tensor) -> torch.Tensor | Pyramid:
        """Compute v^i = alpha_t^i eps^i - sigma_t^i x^i for every level, the target of "v_prediction".

        Arguments as in `add_noise`; `sample` is the clean images.
        """
        return self._over_levels(velocity, sample, noise, timesteps)

    def velocities_of(self, model_output: Sample, clean: Sample, sample: Sample, timesteps: torch.Tensor) -> Pyramid:
        """Convert predictions to v, so that losses of all prediction types compare errors of v.

        A "residual" is relative to the true image of the level inside, which is known during training; a
        "sample_residual" to the predicted one, as in sampling, so that it also learns to correct it. The
        level inside gets no gradient from that.

        Args:
            model_output: the network's predictions, with the shapes of `sample`.
            clean: clean images of all levels, in [-1, 1].
            sample: z_t of all levels.
            timesteps: `(B_0,)`, or one number for all samples.

        Returns:
            One tensor per level, innermost first; the predictions themselves where the network predicts v.
        """
        levels, ratios, bare = self._levels(sample, "sample")
        outputs = matching_levels(model_output, levels, "model_output")
        images = matching_levels(clean, levels, "the clean sample")
        kinds, sigmas = self._kinds(len(levels), ratios, bare)
        if all(kind == "v_prediction" for kind in kinds):
            return outputs
        powers = self.level_alphas_cumprod(sample, as_timesteps(timesteps).to(levels[0].device))
        velocities: Pyramid = []
        predicted: Pyramid = []
        for index, (output, level, power) in enumerate(zip(outputs, levels, powers, strict=True)):
            alpha, sigma = amplitudes_per_sample(power, level)
            inner = images[:index] if kinds[index] == "residual" else predicted
            base = self._base(kinds[index], inner, level, ratios[index])
            meaning = LevelPrediction(kinds[index], alpha, sigma, sigmas[index], base)
            noisy = in_full_precision(level)
            found = meaning.clean(in_full_precision(output), noisy)
            if kinds[index + 1 : index + 2] == ["sample_residual"]:
                predicted = [self._threshold((found * self._image_scale(ratios[index])).detach())]
            velocities.append(LevelPrediction("v_prediction", alpha, sigma).output(found, noisy))
        return velocities

    def clean_of_velocities(self, velocities: Sample, sample: Sample, timesteps: torch.Tensor) -> Pyramid:
        """Return the clean images that v implies, about in [-1, 1], without clipping them.

        Args:
            velocities: v of all levels, see `velocities_of`.
            sample: z_t of all levels.
            timesteps: `(B_0,)`, or one number for all samples.

        Returns:
            One float32 tensor per level, innermost first.
        """
        levels, ratios, _ = self._levels(sample, "sample")
        found = matching_levels(velocities, levels, "velocities")
        powers = self.level_alphas_cumprod(sample, as_timesteps(timesteps).to(levels[0].device))
        images = []
        for v, level, power, ratio in zip(found, levels, powers, ratios, strict=True):
            alpha, sigma = amplitudes_per_sample(power, level)
            clean = LevelPrediction("v_prediction", alpha, sigma).clean(in_full_precision(v), in_full_precision(level))
            images.append(clean * self._image_scale(ratio))
        return images

    def own_error_factors(self, powers: Sequence[torch.Tensor]) -> list[torch.Tensor | None]:
        """Return the factors that convert squared errors of v to those of what each level itself predicts.

        Args:
            powers: signal power of every sample, element i `(B_i,)`, see `level_alphas_cumprod`.

        Returns:
            `(B_i,)` for every level, innermost first; None where the level predicts v.
        """
        kinds, sigmas = self._kinds(len(powers), [1.0], is_alone=False)
        return [error_factor(*level) for level in zip(kinds, powers, sigmas, strict=True)]

    def with_clean_changed(
        self, model_output: Sample, sample: Sample, timestep: torch.Tensor, change: Change
    ) -> Pyramid:
        """Modify predictions such that `step` computes different clean images from them.

        Args:
            model_output: the network's predictions, with the shapes of `sample`.
            sample: z_t of all levels.
            timestep: t, one for all samples and levels.
            change: maps the predicted clean image of a level, `(B, C, H, W)` in about [-1, 1], to the one that is
                wanted; returns the same tensor for a level that is not to be changed.

        Returns:
            Predictions of all levels, innermost first, in the dtypes of `model_output`.
        """
        levels, ratios, bare = self._levels(sample, "sample")
        outputs = matching_levels(model_output, levels, "model_output")
        kinds, sigmas = self._kinds(len(levels), ratios, bare)
        powers = self.level_alphas_cumprod(sample, as_timesteps(timestep))
        changed: Pyramid = []
        images: Pyramid = []
        for index, (output, level, power) in enumerate(zip(outputs, levels, powers, strict=True)):
            base = self._base(kinds[index], images, level, ratios[index])
            meaning = LevelPrediction(kinds[index], *amplitudes_per_sample(power, level), sigmas[index], base)
            noisy, scale = in_full_precision(level), self._image_scale(ratios[index])
            found = meaning.clean(in_full_precision(output), noisy) * scale
            wanted = change(found)
            changed.append(output if wanted is found else meaning.output(wanted / scale, noisy).to(output.dtype))
            images.append(self._threshold(wanted))
        return changed


def as_timesteps(timesteps: Any) -> torch.Tensor:
    """Convert timesteps to a tensor.

    Raises:
        ValueError: they are neither a tensor nor numbers.
    """
    try:
        return torch.as_tensor(timesteps)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"`timesteps` are of type {type(timesteps).__name__}; expected a tensor of whole numbers, one for each "
            f"sample of level 0, or a single number."
        ) from error


def noisy_sample(clean: torch.Tensor, noise: torch.Tensor, power: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
    """Compute z_t = sqrt(g) x / scale + sqrt(1 - g) eps (ml-mdm, Schedule / diffusion: x_t).

    Args:
        clean: x, `(B, ...)`, in [-1, 1].
        noise: eps, same shape.
        power: g, signal power of each sample, `(B,)`.
        scale: the number by which clean images are divided before noise is added.
    """
    signal, spread = amplitudes_per_sample(power, clean)
    mixed = signal * (in_full_precision(clean) / scale) + spread * in_full_precision(noise)
    return mixed.to(clean.dtype)


def velocity(clean: torch.Tensor, noise: torch.Tensor, power: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
    """Compute v_t = sqrt(g) eps - sqrt(1 - g) x / scale (ml-mdm, Schedule / diffusion); arguments as in
    `noisy_sample`.
    """
    signal, spread = amplitudes_per_sample(power, clean)
    mixed = signal * in_full_precision(noise) - spread * (in_full_precision(clean) / scale)
    return mixed.to(clean.dtype)
