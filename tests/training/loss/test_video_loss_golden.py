# SPDX-License-Identifier: Apache-2.0
"""Loss and gradients of a video model equal what was recorded from the published trainer.

Recordings count levels from the outermost, tile frames in one image and name parameters in the published layout.
"""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from diffusers_mdm import MatryoshkaScheduler
from diffusers_mdm.conversion.apple_mdm import convert_apple_checkpoint, to_apple_state_dict
from diffusers_mdm.models.frames import tile_frames, untile_frames
from diffusers_mdm.training.loss.pyramid_loss import PyramidLoss, pyramid_loss

GOLDEN = Path(__file__).parents[2] / "fixtures" / "golden"
TOLERANCE = {"atol": 1e-5, "rtol": 1e-5}
# Gradients are sums over batch and pixels, whose order the processor chooses.
GRADIENT_TOLERANCE = {"atol": 1e-5, "rtol": 1e-4}


@pytest.fixture(scope="module")
def recorded() -> dict[str, torch.Tensor]:
    tensors = load_file(GOLDEN / "sampler_losses_video.safetensors")
    return {name.removeprefix("loss/video/"): value for name, value in tensors.items()}


@pytest.fixture(scope="module")
def unet():
    folder = GOLDEN / "nested_unet_video"
    return convert_apple_checkpoint(folder / "vis_model.pth", folder / "config.yaml").unet.eval()


def clean_clips(recorded: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """The trainer's levels: it took every 4th of 16 frames inwards, whatever the network's frames were, so its inner
    image of a model with 4 frames was not the first of them but a tiling of smaller ones.
    """
    inner = tile_frames(untile_frames(recorded["images"], 16)[:, :, ::4])
    return [inner.unsqueeze(2), untile_frames(recorded["images"], 4)]


def noise_of(recorded: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    return [recorded["eps.1"].float().unsqueeze(2), untile_frames(recorded["eps.0"].float(), 4)]


def loss_of(recorded: dict[str, torch.Tensor], predictions: list[torch.Tensor]) -> PyramidLoss:
    scheduler, clean = MatryoshkaScheduler(base_sample_size=16), clean_clips(recorded)
    velocities = scheduler.get_velocity(clean, noise_of(recorded), recorded["time"])
    return pyramid_loss(predictions, velocities, scheduler.level_alphas_cumprod(clean, recorded["time"]), [1.0, 1.0])


def test_noisy_clips_are_what_was_recorded(recorded):
    scheduler = MatryoshkaScheduler(base_sample_size=16)
    noisy = scheduler.add_noise(clean_clips(recorded), noise_of(recorded), recorded["time"])
    for level, name in zip(noisy, ("x_t.1", "x_t.0"), strict=True):
        torch.testing.assert_close(tile_frames(level), recorded[name], atol=1e-6, rtol=0)


def test_loss_of_recorded_predictions(recorded):
    loss = loss_of(recorded, [recorded["pred.1"].unsqueeze(2), untile_frames(recorded["pred.0"], 4)])
    torch.testing.assert_close(loss.per_sample, recorded["loss"], **TOLERANCE)
    torch.testing.assert_close(loss.total, recorded["total"].squeeze(), **TOLERANCE)


def test_loss_and_gradients(recorded, unet):
    noisy = [recorded["x_t.1"].unsqueeze(2), untile_frames(recorded["x_t.0"], 4)]
    predictions = unet(
        noisy,
        recorded["time"],
        encoder_hidden_states=recorded["lm_outputs"],
        encoder_attention_mask=recorded["lm_mask"],
        added_cond_kwargs={"scale": recorded["scale"]},
    ).sample
    for level, name in zip(predictions, ("pred.1", "pred.0"), strict=True):
        torch.testing.assert_close(tile_frames(level), recorded[name], **TOLERANCE)
    loss = loss_of(recorded, predictions)
    torch.testing.assert_close(loss.per_sample, recorded["loss"], **TOLERANCE)
    torch.testing.assert_close(loss.total, recorded["total"].squeeze(), **TOLERANCE)

    loss.total.backward()
    gradients = {name: parameter.grad for name, parameter in unet.named_parameters()}
    norm = torch.stack([gradient.norm() for gradient in gradients.values() if gradient is not None]).norm()
    torch.testing.assert_close(norm, recorded["grad_norm"].squeeze(), **GRADIENT_TOLERANCE)
    state = unet.state_dict()
    filled = {name: torch.zeros_like(state[name]) if grad is None else grad for name, grad in gradients.items()}
    published = to_apple_state_dict(filled, {})
    for name in [key for key in recorded if key.startswith("grad/")]:
        torch.testing.assert_close(published[name.removeprefix("grad/")], recorded[name], **GRADIENT_TOLERANCE)
