# SPDX-License-Identifier: Apache-2.0
"""What a network predicts, and the only place where a prediction becomes the clean sample, or a clean sample and its
noise what a network is to predict: pure functions of tensors, for reverse steps and losses alike.

Glossary: x = sample at timestep t; x0 = its clean sample; eps = noise in x; g = signal power (alpha_bar) at t;
alpha = sqrt(g), sigma = sqrt(1 - g); v = alpha eps - sigma x0.
"""

from __future__ import annotations

from typing import TypeVar

import torch

from ..pyramid import in_full_precision

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


def prediction_from_clean(
    clean: torch.Tensor,
    sample: torch.Tensor,
    alpha: float | torch.Tensor,
    sigma: float | torch.Tensor,
    prediction_type: str,
) -> torch.Tensor:
    """The network output that stands for a clean sample: the inverse of `clean_from_prediction`."""
    if prediction_type == "sample":
        return clean
    if prediction_type == "epsilon":
        return noise_from_clean(clean, sample, alpha, sigma)
    return (alpha * sample - clean) / sigma


def noise_from_clean(
    clean: torch.Tensor, sample: torch.Tensor, alpha: float | torch.Tensor, sigma: float | torch.Tensor
) -> torch.Tensor:
    """The noise (x - alpha x0) / sigma that `sample` holds if `clean` is its x0."""
    return (sample - alpha * clean) / sigma


def velocity(clean: torch.Tensor, noise: torch.Tensor, power: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
    """v_t = sqrt(g) eps - sqrt(1 - g) x / scale (ml-mdm, Schedule / diffusion), arguments as in `noisy_sample`."""
    signal, spread = row_amplitudes(power, clean)
    mixed = signal * in_full_precision(noise) - spread * (in_full_precision(clean) / scale)
    return mixed.to(clean.dtype)


def amplitudes(power: Power) -> tuple[Power, Power]:
    """Square roots alpha and sigma of the powers of signal and noise, of the kind and shape of `power`.

    For a tensor alpha is the exponential of half a logarithm: the published rounding, of which a last digit near t = 0
    shows as 6e-6 in a noise that is computed from a prediction.
    """
    if isinstance(power, torch.Tensor):
        return torch.exp(torch.log(power) / 2), (1 - power) ** 0.5
    return power**0.5, (1 - power) ** 0.5


def row_amplitudes(power: torch.Tensor, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The alpha and sigma of each row, shaped to multiply `like`."""
    return amplitudes(power.reshape(-1, *[1] * (like.ndim - 1)))
