# SPDX-License-Identifier: Apache-2.0
"""Losses, totals and gradients equal what was recorded from the published trainer.

Recordings count levels from the outermost and name parameters in the published layout.
"""

import functools
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from diffusers_mdm import MatryoshkaScheduler, build_pyramid
from diffusers_mdm.conversion.apple_mdm import convert_apple_checkpoint, to_apple_state_dict
from diffusers_mdm.training.loss.pyramid_loss import PyramidLoss, pyramid_loss, thin_batches

GOLDEN = Path(__file__).parents[2] / "fixtures" / "golden"
# Observed in float32 on CPUs with vector instructions: losses 1.9e-6, totals 2.4e-7, gradients 7.4e-7.
TOLERANCE = 1e-5
# Gradients are sums over batch and pixels, whose order the processor chooses: without vector instructions the norm of
# all of them differs by 3.3e-5 of its size (with them 7.9e-6).
GRADIENT_TOLERANCE = 1e-4
CASES = [
    case
    for case in json.loads((GOLDEN / "sampler.json").read_text())["losses"]
    if case["id"] != "video"  # clips, in test_video_loss_golden.py
]


@functools.cache
def recorded(case_id: str) -> dict[str, torch.Tensor]:
    prefix = f"loss/{case_id}/"
    tensors = load_file(GOLDEN / "sampler_losses.safetensors")
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def inside_out(tensors: dict[str, torch.Tensor], name: str) -> list[torch.Tensor]:
    count = sum(key.startswith(f"{name}.") for key in tensors)
    return [tensors[f"{name}.{index}"].float() for index in reversed(range(count))]


def level_weights(case: dict, num_levels: int) -> list[float]:
    if case["multi_res_weights"]:
        return [float(weight) for weight in reversed(case["multi_res_weights"].split(":"))]
    return [1.0] * num_levels if case["use_double_loss"] else [0.0] * (num_levels - 1) + [1.0]


def noisy_case(case: dict) -> tuple[list[torch.Tensor], list[torch.Tensor], list[torch.Tensor], list[int]]:
    """Noisy levels, true v and signal powers, and the rows of each level, innermost first."""
    tensors = recorded(case["id"])
    noise = inside_out(tensors, "eps")
    rows = case["high_res_rows"][::-1]
    scheduler = MatryoshkaScheduler(base_sample_size=noise[0].shape[-1], shift_power=case["schedule_shifted_power"])
    clean = thin_batches(build_pyramid(tensors["images"], [level.shape[-1] for level in noise]), rows)
    noise = thin_batches(noise, rows)
    return (
        scheduler.add_noise(clean, noise, tensors["time"]),
        scheduler.get_velocity(clean, noise, tensors["time"]),
        scheduler.level_alphas_cumprod(clean, tensors["time"]),
        rows,
    )


def loss_of(case: dict, predictions: list[torch.Tensor]) -> PyramidLoss:
    _, velocities, alphas, rows = noisy_case(case)
    weights = level_weights(case, len(predictions))
    return pyramid_loss(thin_batches(predictions, rows), velocities, alphas, weights)


def vdm_weights(scheduler: MatryoshkaScheduler, timesteps: torch.Tensor) -> torch.Tensor:
    """SNR(t - 1) / SNR(t) - 1 of level 0, (B,): an option of ml-mdm; t = 0 takes the weight of t = 1."""
    timesteps = timesteps.clamp(min=1)
    alphas = scheduler.alphas_cumprod.float()
    snr = alphas / (1 - alphas)
    return snr[timesteps - 1] / snr[timesteps] - 1


def total_of(case: dict, loss: PyramidLoss) -> torch.Tensor:
    if not case["use_vdm_loss_weights"]:
        return loss.total
    weights = vdm_weights(MatryoshkaScheduler(), recorded(case["id"])["time"])
    return (weights * loss.per_sample).sum() / weights.sum()


def assert_near(actual: torch.Tensor, expected: torch.Tensor, rtol: float = TOLERANCE) -> None:
    torch.testing.assert_close(actual, expected, atol=TOLERANCE, rtol=rtol)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_losses_of_recorded_predictions(case):
    tensors = recorded(case["id"])
    loss = loss_of(case, inside_out(tensors, "pred"))
    assert_near(loss.per_sample, tensors["loss"])
    assert_near(total_of(case, loss), tensors["total"].squeeze())


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_gradients_of_converted_models(case):
    tensors = recorded(case["id"])
    folder = GOLDEN / case["model"]
    unet = convert_apple_checkpoint(folder / "vis_model.pth", folder / "config.yaml").unet.eval()
    noisy, _, _, _ = noisy_case(case)
    predictions = unet(
        noisy,
        tensors["time"],
        encoder_hidden_states=tensors["lm_outputs"],
        encoder_attention_mask=tensors["lm_mask"],
        added_cond_kwargs={"scale": tensors["scale"]} if "scale" in tensors else None,
    ).sample
    loss = loss_of(case, predictions)
    assert_near(loss.per_sample, tensors["loss"])
    total = total_of(case, loss)
    assert_near(total, tensors["total"].squeeze())

    total.backward()
    gradients = {
        name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        for name, parameter in unet.named_parameters()
    }
    norm = torch.stack([gradient.norm() for gradient in gradients.values()]).norm()
    assert_near(norm, tensors["grad_norm"].squeeze(), GRADIENT_TOLERANCE)
    published = to_apple_state_dict(gradients, {})
    for name in [key for key in tensors if key.startswith("grad/")]:
        assert_near(published[name.removeprefix("grad/")], tensors[name], GRADIENT_TOLERANCE)


def test_vdm_weights_are_the_recorded_ones():
    timesteps = recorded("unet_vdm")["time"]
    recorded_weights = recorded("unet_vdm")["vdm_weights"]
    torch.testing.assert_close(vdm_weights(MatryoshkaScheduler(), timesteps), recorded_weights, atol=0, rtol=1e-6)
