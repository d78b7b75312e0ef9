# SPDX-License-Identifier: Apache-2.0
"""From clean to noisy: z_t^i = alpha_t^i x^i + sigma_t^i eps^i on every level, what training needs of a scheduler."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from ..checked_values import check_tensor
from ..pyramid import Pyramid, as_pyramid, check_pyramid, in_full_precision, level_ratios, matching_levels
from .reverse_steps import amplitudes
from .timestep_spacing import as_timesteps

Sample = torch.Tensor | Sequence[torch.Tensor]


class PyramidForwardProcess:
    """The forward process of a pyramid; `MatryoshkaScheduler`, which has the config, adds the reverse one.

    Attributes:
        alphas_cumprod: signal power of level 0 at every timestep, `(T,)` float32.
    """

    config: Any
    alphas_cumprod: torch.Tensor
    _moved_table: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.alphas_cumprod)

    def _table_on(self, device: torch.device) -> torch.Tensor:
        """`alphas_cumprod` on a device, moved there once."""
        if self.alphas_cumprod.device == device:
            return self.alphas_cumprod
        if self._moved_table is None or self._moved_table.device != device:
            self._moved_table = self.alphas_cumprod.to(device)
        return self._moved_table

    def alpha_cumprod(self, timesteps: torch.Tensor, ratio: float = 1.0) -> torch.Tensor:
        """Signal power (alpha_bar) at a level.

        Args:
            timesteps: whole numbers in [0, T), any shape.
            ratio: of the level to level 0, at least 1 (see `level_ratios`).

        Returns:
            float32 tensor in [0, 1] of the shape of `timesteps`, on their device.
        """
        if timesteps.dtype.is_floating_point or timesteps.dtype.is_complex or timesteps.dtype == torch.bool:
            raise ValueError(f"`timesteps` are {timesteps.dtype}; expected whole numbers.")
        # Looking at values on an accelerator would make every training step wait for it.
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
        """Signal power of every row of every level.

        Args:
            pyramid: levels of `(B_i, ...)`, for their shapes only.
            timesteps: `(B_0,)`, or one number for all rows.

        Returns:
            Tensors `(B_i,)`, float32, innermost level first.
        """
        levels, ratios, _ = self._levels(pyramid, "pyramid")
        timesteps = as_timesteps(timesteps)
        rows = timesteps if timesteps.numel() != 1 else timesteps.reshape(1).expand(len(levels[0]))
        if rows.shape != levels[0].shape[:1]:
            raise ValueError(
                f"`timesteps` has shape {tuple(timesteps.shape)}; expected one timestep, or one for each row of "
                f"level 0: ({len(levels[0])},)."
            )
        return [self.alpha_cumprod(rows[: len(level)], ratio) for level, ratio in zip(levels, ratios, strict=True)]

    def _levels(self, sample: Sample, name: str) -> tuple[Pyramid, list[float], bool]:
        """Levels of a sample, their ratios (at least 1), and whether it was a bare tensor."""
        levels, bare = as_pyramid(sample)
        for level in levels:
            check_tensor(level, name, "a pyramid, or one level", is_floating=True)
        if bare and levels[0].ndim < 2:
            raise ValueError(
                f"`{name}` has shape {tuple(levels[0].shape)}; expected (batch, channels, height, width), or (batch, "
                "channels, frames, height, width) for clips."
            )
        if not bare:
            check_pyramid(levels, name=name)
            return levels, level_ratios(levels), False
        side = min(levels[0].shape[-2:])
        return levels, [max(side / self.config.base_sample_size, 1.0)], True

    def _image_scale(self, ratio: float) -> float:
        """What a level's pictures are divided by before they are diffused."""
        return ratio if self.config.level_scaling == "rescale" else 1.0

    def add_noise(self, original_samples: Sample, noise: Sample, timesteps: torch.Tensor) -> torch.Tensor | Pyramid:
        """z_t^i = alpha_t^i x^i + sigma_t^i eps^i for every level.

        Args:
            original_samples: clean pictures in [-1, 1].
            noise: N(0, 1) of the same shapes.
            timesteps: `(B_0,)`, level i uses the first B_i of them; or one number for all rows.
        """
        return self._over_levels(noisy_sample, original_samples, noise, timesteps)

    def get_velocity(self, sample: Sample, noise: Sample, timesteps: torch.Tensor) -> torch.Tensor | Pyramid:
        """v^i = alpha_t^i eps^i - sigma_t^i x^i for every level, what a "v_prediction" network learns.

        Arguments as in `add_noise`; `sample` are the clean pictures.
        """
        return self._over_levels(velocity, sample, noise, timesteps)

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


def noisy_sample(clean: torch.Tensor, noise: torch.Tensor, power: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
    """z_t = sqrt(g) x / scale + sqrt(1 - g) eps (ml-mdm, Schedule / diffusion: x_t).

    Args:
        clean: x, `(B, ...)`, in [-1, 1].
        noise: eps, same shape.
        power: g, signal power of each row, `(B,)`.
        scale: what clean pictures are divided by before they are diffused.
    """
    signal, spread = _row_amplitudes(power, clean)
    mixed = signal * (in_full_precision(clean) / scale) + spread * in_full_precision(noise)
    return mixed.to(clean.dtype)


def velocity(clean: torch.Tensor, noise: torch.Tensor, power: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
    """v_t = sqrt(g) eps - sqrt(1 - g) x / scale (ml-mdm, Schedule / diffusion), arguments as in `noisy_sample`."""
    signal, spread = _row_amplitudes(power, clean)
    mixed = signal * in_full_precision(noise) - spread * (in_full_precision(clean) / scale)
    return mixed.to(clean.dtype)


def _row_amplitudes(power: torch.Tensor, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The alpha and sigma of each row, shaped to multiply `like`."""
    return amplitudes(power.reshape(-1, *[1] * (like.ndim - 1)))


def shift_signal_power(power: torch.Tensor, ratio: float, shift_power: float) -> torch.Tensor:
    """Signal power at a level whose side is `ratio` times the innermost one's: log SNR_i = log SNR_0 - p log(ratio).

    A larger picture hides less of its content under the same noise, hence the shift (ml-mdm,
    Schedule: shift for scale s > 1). A ratio of 1 gives `power` back untouched.

    Args:
        power: alpha_bar of level 0, any shape, in [0, 1].
        ratio: r_i / r_0, at least 1.
        shift_power: p.
    """
    if ratio == 1:
        return power
    snr = power / (1 - power) / ratio**shift_power
    return 1 / (1 + 1 / snr)
