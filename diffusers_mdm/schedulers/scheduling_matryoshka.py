# SPDX-License-Identifier: Apache-2.0
"""`MatryoshkaScheduler`: a diffusion process over image pyramids, with one noise schedule that is shifted for each
level.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import ConfigMixin, SchedulerMixin
from diffusers.configuration_utils import register_to_config
from diffusers.utils import BaseOutput

from ..checked_values import describe
from ..pyramid import Pyramid, check_finite, in_full_precision, matching_levels, pyramid_noise
from .forward_process import PyramidForwardProcess
from .level_agreement import agreement_strengths
from .noise_schedules import (
    betas_from_trained,
    betas_of_family,
    signal_power,
    zero_terminal_snr,
)
from .predictions import Sample
from .reverse_steps import (
    LevelPowers,
    check_eta,
    checked_timesteps,
    reverse_step,
    spaced_timesteps,
    whole_timestep,
)
from .scheduler_config import check_config, lasting_defaults, with_origin_spelled_out

Generators = torch.Generator | list[torch.Generator]

# Stands for the timestep after the last one, the clean image.
_CLEAN = -1


@dataclass
class MatryoshkaSchedulerOutput(BaseOutput):
    """Output of a reverse step: pyramids (innermost level first) if the sample was one, otherwise tensors.

    Args:
        prev_sample: the sample after the step; after the last step, the image in [-1, 1].
        pred_original_sample: the predicted clean image of this step, thresholded, in [-1, 1].
    """

    prev_sample: torch.Tensor | Pyramid
    pred_original_sample: torch.Tensor | Pyramid


@dataclass(frozen=True)
class _History:
    """Clean predictions of the previous step, for the second-order solver."""

    timestep: int
    next_timestep: int
    clean: Pyramid


class MatryoshkaScheduler(PyramidForwardProcess, SchedulerMixin, ConfigMixin):
    """The noise schedule and reverse steps of Matryoshka Diffusion Models, for training and sampling.

    z_t^i = alpha_t^i D^i(x) + sigma_t^i eps^i with independent eps^i, one t for all levels, and log SNR_i(t) = log
    SNR_0(t) - p log(r_i / r_0). All methods take a pyramid (a list of `(B_i, C, H_i, W_i)`, or for clips `(B_i, C,
    F_i, H_i, W_i)`, innermost first, where outer levels can have smaller batches) or a bare tensor, and return the
    same kind. In a pyramid, whose first entry is always level 0, the ratio r_i / r_0 of a level is H_i / H_0, times
    the square root of F_i / F_0 for clips; for a bare tensor it is its shorter side divided by `base_sample_size`, but
    at least 1.

    Timesteps t run from 0 to `num_train_timesteps` - 1; `alphas_cumprod[t]` is the signal power of level 0 at t, and
    the signal power after the last step is 1. Half-precision samples are converted to float32 for computation and cast
    back.

    Args:
        num_train_timesteps: T. With `trained_betas` it becomes their number.
        beta_start: first beta of the schedules "linear" and "scaled_linear".
        beta_end: last beta of these schedules.
        beta_schedule: "squaredcos_cap_v2" (the published models), "linear", "scaled_linear", "cosine_log_snr", or
            "rectified_flow" (the log SNR of rectified flow, see `noise_schedules`).
        trained_betas: list of betas, instead of `beta_schedule`.
        log_snr_max: log SNR at t = 0 of the schedule "cosine_log_snr".
        log_snr_min: log SNR at the last t of this schedule.
        rescale_betas_zero_snr: rescale the betas so that the last timestep is pure noise.
        prediction_type: what the network predicts: "v_prediction", "epsilon", "sample" (the clean image), or one of
            these per level, innermost first. Outer levels can also predict the "residual", the difference from the
            enlarged clean image of the level inside, or the clean image by way of this difference, the
            "sample_residual" (see `LevelPrediction`); single ones mean v and "sample" at level 0.
        shift_power: p (published: 1 for two levels, 2 for three).
        base_sample_size: side of level 0 in pixels, used for bare tensors only.
        level_scaling: how the size of a level affects its noise. "shift" shifts the schedule as above; "rescale" does
            not shift it, and adds noise to D^i(x) r_0 / r_i instead (the published unshifted models). In both cases,
            images passed in and returned are in [-1, 1].
        clip_sample: clip predicted clean images to +- `clip_sample_range`, unless `thresholding` is set.
        clip_sample_range: see `clip_sample`.
        thresholding: dynamic thresholding of predicted clean images, separately for each sample of each level.
        dynamic_thresholding_ratio: the quantile for it. Published: 0.995 with a bound of 100, or (in the demo) 0.95
            with 1.5.
        sample_max_value: upper bound of the threshold.
        timestep_spacing: "matryoshka" (published), "log_snr" (even in log SNR at every level), or "leading",
            "trailing", "linspace" as in `DDIMScheduler`.
        steps_offset: added to the timesteps of "leading".
        algorithm: "ddim" (with `eta`; 1 is ancestral DDPM) or "dpmsolver++".
        solver_order: 1 or 2, for "dpmsolver++". The last step, to the clean image, is always of order 1.
        sigma_data: standard deviation of the residuals, one for all or one for each outer level, innermost first; the
            training command measures it.

    Raises:
        ValueError: a value is not one of the above.
    """

    _compatibles = ["DDIMScheduler", "DDPMScheduler", "DPMSolverMultistepScheduler"]
    order = 1
    _powers: LevelPowers  # set by `set_timesteps`

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "squaredcos_cap_v2",
        trained_betas: np.ndarray | list[float] | None = None,
        log_snr_max: float = 5.0,
        log_snr_min: float = -5.0,
        rescale_betas_zero_snr: bool = False,
        prediction_type: str | list[str] = "v_prediction",
        shift_power: float = 1.0,
        base_sample_size: int = 64,
        level_scaling: str = "shift",
        clip_sample: bool = True,
        clip_sample_range: float = 1.0,
        thresholding: bool = False,
        dynamic_thresholding_ratio: float = 0.995,
        sample_max_value: float = 1.0,
        timestep_spacing: str = "matryoshka",
        steps_offset: int = 0,
        algorithm: str = "ddim",
        solver_order: int = 2,
        sigma_data: float | list[float] = 0.25,
    ) -> None:
        check_config(self.config)
        if trained_betas is not None:
            betas = betas_from_trained(trained_betas)
            self.register_to_config(num_train_timesteps=len(betas))
        else:
            betas = betas_of_family(beta_schedule, num_train_timesteps, beta_start, beta_end, log_snr_max, log_snr_min)
        if rescale_betas_zero_snr:
            betas = zero_terminal_snr(betas)
        self.register_to_config(**lasting_defaults(self.config))

        self.betas = betas.to(torch.float32)
        self.alphas = 1.0 - self.betas
        self.alphas_cumprod = signal_power(betas)
        self.final_alpha_cumprod = torch.tensor(1.0)
        self.init_noise_sigma = 1.0

        self.num_inference_steps: int | None = None
        self.timesteps = torch.arange(len(betas) - 1, -1, -1)
        self._visited = self.timesteps.tolist()
        self._history: _History | None = None
        self._step_index: int | None = None
        self._begin_index: int | None = None

    # Compatibility with other schedulers

    @classmethod
    def _get_compatibles(cls) -> list[type[SchedulerMixin]]:
        """Return this class, which diffusers looks up only in its own module, and diffusers' compatible ones."""
        return [cls, *(other for other in super()._get_compatibles() if other is not cls)]

    @classmethod
    def from_config(cls, config: Any = None, return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        """Create a scheduler from the config of this class or of a compatible one (`DDIMScheduler`, ...).

        The noise schedule and prediction type of the other class are kept, even if they were its defaults.

        Raises:
            ValueError: the other scheduler has a feature that is not supported here (learned variance, other solvers).
        """
        if config is not None and not isinstance(config, (str, os.PathLike, Mapping)):
            raise TypeError(
                f"The config of a scheduler is {describe(config)} ({type(config).__name__}); expected the `config` of "
                "another scheduler, or a dict."
            )
        if isinstance(config, Mapping):
            config = with_origin_spelled_out(config, cls._compatibles)
        return super().from_config(config, return_unused_kwargs=return_unused_kwargs, **kwargs)

    # Sampling

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: torch.device | str | None = None,
        timesteps: Sequence[int] | np.ndarray | torch.Tensor | None = None,
    ) -> None:
        """Set the timesteps for sampling, in decreasing order, as `scheduler.timesteps`.

        Args:
            num_inference_steps: number of timesteps, spaced according to `timestep_spacing`.
            device: device of `scheduler.timesteps`.
            timesteps: the timesteps themselves, strictly decreasing, instead of their number.

        Raises:
            ValueError: both or neither are given, or timesteps are not in [0, T).
        """
        if (num_inference_steps is None) == (timesteps is None):
            raise ValueError("Pass either `num_inference_steps` or `timesteps` to `set_timesteps`, and not both.")
        if timesteps is not None:
            visited = checked_timesteps(timesteps, len(self))
        elif num_inference_steps is not None:
            visited = spaced_timesteps(
                self.config.timestep_spacing, num_inference_steps, self.alphas_cumprod, self.config.steps_offset
            )
        # The device may be invalid: the old timesteps are kept until the new ones are complete.
        self.timesteps = torch.tensor(visited, dtype=torch.int64, device=device)
        self._visited = visited
        shifted = self.config.level_scaling == "shift"
        self._powers = LevelPowers(self.alphas_cumprod, self.config.shift_power if shifted else None)
        self.num_inference_steps = len(self._visited)
        self._history = None
        self._step_index = None
        self._begin_index = None

    @property
    def step_index(self) -> int | None:
        """Index in `timesteps` of the next step; None before the first one."""
        return self._step_index

    @property
    def begin_index(self) -> int | None:
        """Index in `timesteps` of the first step, if a pipeline has set it."""
        return self._begin_index

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Record the index in `timesteps` at which sampling begins; steps themselves need only t."""
        self._begin_index = begin_index

    def previous_timestep(self, timestep: int | torch.Tensor) -> int:
        """Return the timestep to which a step from `timestep` leads, or -1 for the clean image."""
        return self._after(whole_timestep(timestep, len(self)))[1]

    def scale_model_input(self, sample: Sample, timestep: int | torch.Tensor | None = None) -> Sample:
        """Return the sample unchanged; other schedulers scale it."""
        return sample

    def _after(self, timestep: int) -> tuple[int, int]:
        """Return the index in `timesteps` of the next step, and its timestep (-1 after the last one)."""
        index = sum(visited >= timestep for visited in self._visited)
        return index, self._visited[index] if index < len(self._visited) else _CLEAN

    def _power(self, timestep: int, ratio: float) -> float:
        """Return the signal power of a level as a number, rounded to float32 as in the tables; 1 for the clean
        image.
        """
        return 1.0 if timestep == _CLEAN else self._powers.at(timestep, ratio)

    def step(
        self,
        model_output: Sample,
        timestep: int | torch.Tensor,
        sample: Sample,
        eta: float | None = 0.0,
        generator: Generators | None = None,
        variance_noise: Sample | None = None,
        return_dict: bool = True,
        level_agreement: float | Sequence[float] = 0.0,
        check_output: bool = True,
    ) -> MatryoshkaSchedulerOutput | tuple[torch.Tensor | Pyramid, torch.Tensor | Pyramid]:
        """Take a reverse step of all levels, to the largest of `timesteps` below `timestep`, or to the clean image.

        As in diffusers' `DDIMScheduler`, `timestep` need not be one of `timesteps`, as long as it is in [0, T).

        Args:
            model_output: the network's predictions, with the shapes of `sample`.
            timestep: t, one for all samples and levels.
            sample: z_t.
            eta: amount of noise that "ddim" adds, from 0 (deterministic) to 1 (ancestral DDPM). None is ancestral too,
                in the form that the published samplers use by default; it differs from 1 only by rounding.
            generator: generator of this noise: one, or one per sample of level 0, whose noise then does not depend on
                other samples. Noise is sampled level by level, innermost first, in float32 for half-precision samples,
                and only if it is used: if eta is not 0, and not in the step to the clean image.
            variance_noise: the noise itself, N(0, 1), instead of a generator.
            return_dict: return a `MatryoshkaSchedulerOutput` instead of `(prev_sample, pred_original_sample)`.
            level_agreement: 0 to 1, one for all or one for every level but the innermost: the fraction by which the
                averages of a predicted clean level are moved to the level inside it (see `level_agreement.agree`).
            check_output: check that the model output is finite, which waits for the accelerator; pipelines check all
                steps together after sampling.

        Raises:
            ValueError: `set_timesteps` was not called, the timestep is outside [0, T), shapes differ, the model output
                is not finite, or eta is used with "dpmsolver++".
        """
        if self.num_inference_steps is None:
            raise ValueError("`step` needs the list of timesteps: call `set_timesteps` first.")
        now = whole_timestep(timestep, len(self))
        next_index, later = self._after(now)
        levels, ratios, bare = self._levels(sample, "sample")
        outputs = matching_levels(model_output, levels, "model_output")
        if check_output:
            check_finite(outputs, now, "model_output")
        noises = self._injected_noise(levels, eta, later, generator, variance_noise)
        is_alone = isinstance(level_agreement, float) and level_agreement == 0
        strengths = [] if is_alone else agreement_strengths(level_agreement, len(levels))

        powers = [self._power(now, ratio) for ratio in ratios]
        images = self._clean_images(outputs, levels, powers, ratios, strengths)
        cleans = [image / self._image_scale(ratio) for image, ratio in zip(images, ratios, strict=True)]
        results, earlier = [], self._earlier_cleans(now, levels)
        for index, (level, clean, ratio) in enumerate(zip(levels, cleans, ratios, strict=True)):
            x, next_power, before = in_full_precision(level), self._power(later, ratio), None
            if earlier is not None and index < len(earlier.clean):  # an outer level may have just started
                before = (earlier.clean[index], self._power(earlier.timestep, ratio))
            algorithm, noise = self.config.algorithm, noises[index]
            results.append(reverse_step(algorithm, clean, x, powers[index], next_power, eta, noise, before))

        if self.config.algorithm == "dpmsolver++" and self.config.solver_order == 2:
            self._history = _History(now, later, cleans) if later != _CLEAN else None
        self._step_index = next_index
        previous = self._handed_back(results, levels, ratios, bare, as_image=later == _CLEAN)
        original = self._handed_back(cleans, levels, ratios, bare, as_image=True)
        if not return_dict:
            return previous, original
        return MatryoshkaSchedulerOutput(prev_sample=previous, pred_original_sample=original)

    def _injected_noise(
        self,
        levels: Pyramid,
        eta: float | None,
        later: int,
        generator: Generators | None,
        variance_noise: Sample | None,
    ) -> Pyramid | list[None]:
        check_eta(eta)
        if eta != 0 and self.config.algorithm != "ddim":
            raise ValueError(f"`eta` is {eta}, but the algorithm {self.config.algorithm!r} injects no noise; pass 0.")
        if eta == 0 or later == _CLEAN:
            return [None] * len(levels)
        if variance_noise is None:
            dtype = in_full_precision(levels[0]).dtype
            return pyramid_noise([level.shape for level in levels], generator, device=levels[0].device, dtype=dtype)
        if generator is not None:
            raise ValueError("Pass either `generator` or `variance_noise`, not both.")
        return [in_full_precision(noise) for noise in matching_levels(variance_noise, levels, "variance_noise")]

    def _earlier_cleans(self, now: int, levels: Pyramid) -> _History | None:
        """Return the clean predictions of the previous step, if this step continues from its end."""
        history = self._history
        if history is None or history.next_timestep != now:
            return None
        same = all(clean.shape == level.shape for clean, level in zip(history.clean, levels, strict=False))
        return history if same else None

    def _handed_back(
        self, results: Pyramid, like: Pyramid, ratios: list[float], bare: bool, as_image: bool
    ) -> torch.Tensor | Pyramid:
        """Return levels in the dtypes of `like`; images are in [-1, 1] even if the process divides them by the
        ratio.
        """
        scales = [self._image_scale(ratio) if as_image else 1.0 for ratio in ratios]
        levels = [(result * scale).to(level.dtype) for result, scale, level in zip(results, scales, like, strict=True)]
        return levels[0] if bare else levels
