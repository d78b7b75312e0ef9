# SPDX-License-Identifier: Apache-2.0
"""One reverse step at one level: pure functions of tensors and of the level's signal power.

Glossary: x = sample at timestep t; x0 = predicted clean sample; eps = noise in x; g, g_s = signal power (alpha_bar) at
t and at the timestep after the step (g_s = 1 after the last one); alpha = sqrt(g), sigma = sqrt(1 - g).
"""

from __future__ import annotations

import math
import numbers
from typing import Any, TypeVar

import torch

# A number, or a tensor of them.
Power = TypeVar("Power", float, torch.Tensor)

PREDICTION_TYPES = ("v_prediction", "epsilon", "sample")


def clean_from_prediction(
    output: torch.Tensor,
    sample: torch.Tensor,
    alpha: float | torch.Tensor,
    sigma: float | torch.Tensor,
    prediction_type: str,
) -> torch.Tensor:
    """x0 of a network output (ml-mdm, Schedule / diffusion: v = alpha eps - sigma x0).

    Args:
        output: network output, same shape as `sample`.
        sample: x.
        alpha: numbers, or tensors that broadcast against `sample`; so is `sigma`.
        sigma: see `alpha`.
        prediction_type: what the network predicts: "v_prediction", "epsilon" or "sample" (x0 itself).
    """
    if prediction_type == "v_prediction":
        return alpha * sample - sigma * output
    if prediction_type == "epsilon":
        if isinstance(alpha, float) and alpha == 0:
            raise ValueError(
                "The timestep is pure noise, where a noise prediction tells nothing of the picture: begin at a lower "
                "timestep, or use a network that predicts v."
            )
        return (sample - sigma * output) / alpha
    if prediction_type == "sample":
        return output
    raise ValueError(f"`prediction_type` is {prediction_type!r}; expected one of {', '.join(PREDICTION_TYPES)}.")


def noise_from_clean(
    clean: torch.Tensor, sample: torch.Tensor, alpha: float | torch.Tensor, sigma: float | torch.Tensor
) -> torch.Tensor:
    """The noise (x - alpha x0) / sigma that `sample` holds if `clean` is its x0."""
    return (sample - alpha * clean) / sigma


def dynamic_threshold(clean: torch.Tensor, ratio: float, max_value: float) -> torch.Tensor:
    """Clamp each row to its own quantile s of |x0|, 1 <= s <= max_value, and divide by s (Imagen, section 2.3).

    Args:
        clean: `(B, ...)`.
        ratio: which quantile, e.g. 0.995.
        max_value: upper bound of s.
    """
    # Row by row: torch.quantile refuses very large inputs, and a row's result must not depend on its neighbours.
    quantiles = torch.stack([torch.quantile(row.abs().flatten(), ratio) for row in clean])
    bound = quantiles.clamp(min=1, max=max_value).reshape(-1, *[1] * (clean.ndim - 1))
    return clean.clamp(-bound, bound) / bound


def ddim_step(
    clean: torch.Tensor,
    sample: torch.Tensor,
    power: float,
    next_power: float,
    eta: float = 0.0,
    noise: torch.Tensor | None = None,
) -> torch.Tensor:
    """DDIM (Song et al. 2021, eq. 12 and 16; ml-mdm, Sampling), eps taken from the thresholded x0.

    Args:
        clean: x0, thresholded.
        sample: x.
        power: g.
        next_power: g_s.
        eta: 0 is deterministic, 1 is ancestral DDPM; scales the standard deviation of the injected noise.
        noise: N(0, 1) like `sample`; None for no noise.
    """
    alpha, sigma = amplitudes(power)
    next_alpha, next_sigma = amplitudes(next_power)
    eps = noise_from_clean(clean, sample, alpha, sigma)
    if noise is None:
        return next_alpha * clean + next_sigma * eps
    g, g_s = torch.tensor(power), torch.tensor(next_power)
    variance = _ancestral_variance(g, g_s) * eta**2
    kept = (1 - g_s - variance).clamp(min=0)
    return next_alpha * clean + kept.item() ** 0.5 * eps + variance.item() ** 0.5 * noise


def ancestral_step(
    clean: torch.Tensor, sample: torch.Tensor, power: float, next_power: float, noise: torch.Tensor | None
) -> torch.Tensor:
    """A draw from q(x_s | x, x0) (Ho et al. 2020, eq. 6 and 7; ml-mdm, Sampling: eta None), arguments as `ddim_step`.

    The distribution of `ddim_step` with eta 1, without its cancellation where x is almost pure noise (5e-5 there).
    """
    g, g_s = torch.tensor(power), torch.tensor(next_power)
    clean_weight = (1 - g / g_s) * g_s.sqrt() / (1 - g)
    sample_weight = (g / g_s).sqrt() * (1 - g_s) / (1 - g)
    mean = clean_weight.item() * clean + sample_weight.item() * sample
    if noise is None:
        return mean
    return mean + _ancestral_variance(g, g_s).item() ** 0.5 * noise


def _ancestral_variance(g: torch.Tensor, g_s: torch.Tensor) -> torch.Tensor:
    """Variance of q(x_s | x, x0); as all of the published coefficients, in float32 at each operation."""
    return (1 - g / g_s) * (1 - g_s) / (1 - g)


def dpm_solver_step(
    clean: torch.Tensor,
    sample: torch.Tensor,
    power: float,
    next_power: float,
    earlier: tuple[torch.Tensor, float] | None = None,
) -> torch.Tensor:
    """DPM-Solver++(2M) in its midpoint form (Lu et al. 2022, algorithm 2), x_s = sigma_s/sigma x + (alpha_s -
    alpha sigma_s/sigma) D.

    D = x0 makes the step first order (DDIM with eta 0); with the x0 of the step before, D extrapolates linearly in
    lambda = log(alpha / sigma): D = x0 + (h / 2 h_before) (x0 - x0_before).

    Args:
        clean: x0, thresholded.
        sample: x.
        power: g.
        next_power: g_s.
        earlier: x0 of the step before and its signal power; None for a first order step. It is left out where the step
            ends on the clean picture (lambda is infinite there).
    """
    direction = clean
    if earlier is not None and next_power < 1:
        earlier_clean, earlier_power = earlier
        here = _half_log_snr(power)
        step, step_before = _half_log_snr(next_power) - here, here - _half_log_snr(earlier_power)
        direction = clean + 0.5 * step / step_before * (clean - earlier_clean)
    alpha, sigma = amplitudes(power)
    next_alpha, next_sigma = amplitudes(next_power)
    shrink = next_sigma / sigma
    return shrink * sample + (next_alpha - alpha * shrink) * direction


def amplitudes(power: Power) -> tuple[Power, Power]:
    """Square roots alpha and sigma of the powers of signal and noise, of the kind and shape of `power`.

    For a tensor alpha is the exponential of half a logarithm: the published rounding, of which a last digit near t = 0
    shows as 6e-6 in a noise that is computed from a prediction.
    """
    if isinstance(power, torch.Tensor):
        return torch.exp(torch.log(power) / 2), (1 - power) ** 0.5
    return power**0.5, (1 - power) ** 0.5


def _half_log_snr(power: float) -> float:
    """The lambda = log(alpha / sigma); minus infinity where nothing of the picture is left."""
    return 0.5 * (math.log(power) - math.log1p(-power)) if power > 0 else -math.inf


def check_eta(eta: Any) -> None:
    """Refuse an `eta` that is neither None nor a number from 0 to 1."""
    is_number = isinstance(eta, numbers.Real) and not isinstance(eta, bool)
    if eta is not None and not (is_number and 0 <= eta <= 1):
        raise ValueError(f"`eta` is {eta!r}; expected 0 (deterministic) to 1 (ancestral), or None (ancestral).")
