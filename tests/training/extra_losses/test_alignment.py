# SPDX-License-Identifier: Apache-2.0
"""Representation alignment: what it compares, and what it trains."""

import pytest
import torch

from diffusers_mdm import NestedUNetModel
from diffusers_mdm.training.extra_losses.alignment import AlignmentLoss
from diffusers_mdm.training.extra_losses.extra_loss import LossInputs
from diffusers_mdm.training.recipe.stage import AlignmentRecipe
from tests.training.extra_losses.tiny_networks import TinyMaps

SIZES = {
    "sample_size": 8,
    "block_out_channels": ((8, 16), (8,)),
    "layers_per_block": ((1, 1), (1,)),
    "attention_layers_per_block": ((0, 0), (0,)),
    "has_attention_ffn": (False, False),
    "norm_num_groups": (4, 4),
    "normalize_input": (False, False),
    "dropout": (0.0, 0.0),
    "micro_conditioning_keys": ((), ()),
    "micro_conditioning_defaults": ((), ()),
    "patch_size": (1, 2),
    "num_attention_heads": 2,
    "attention_norm_num_groups": 4,
    "num_class_embeds": 3,
}


@pytest.fixture
def unet():
    torch.manual_seed(0)
    return NestedUNetModel(**SIZES, has_mid_block=(True, False))


@pytest.fixture
def loss():
    torch.manual_seed(1)
    return AlignmentLoss(AlignmentRecipe("tiny", hidden_channels=32), 16, TinyMaps())


def run(unet) -> None:
    labels = torch.zeros(3, dtype=torch.long)
    unet([torch.randn(3, 3, 8, 8), torch.randn(2, 3, 16, 16)], torch.tensor([1, 2, 3]), class_labels=labels)


def given(pixels: torch.Tensor) -> LossInputs:
    return LossInputs(pixels, [], [], [])


def test_features_of_level_0_learn_those_of_the_encoder(unet, loss):
    pixels = torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8)
    loss.attach(unet)
    optimizer = torch.optim.Adam([*unet.parameters(), *loss.trained.parameters()], lr=1e-2)
    history = []
    for _ in range(15):
        torch.manual_seed(2)
        run(unet)
        errors = loss.errors(given(pixels))
        assert errors.shape == (3,)
        errors.mean().backward()
        history.append(errors.mean().item())
        optimizer.step()
        optimizer.zero_grad()
    assert history[-1] < 0.6 * history[0]
    middle = unet.levels[0].decoder.mid_block
    assert all(parameter in optimizer.state for parameter in middle.resnets.parameters())


def test_a_pass_without_gradients_leaves_no_features(unet, loss):
    loss.attach(unet)
    with torch.no_grad():
        run(unet)
    with pytest.raises(RuntimeError, match="without gradients"):
        loss.errors(given(torch.zeros(3, 3, 16, 16, dtype=torch.uint8)))
    loss.detach()
    run(unet)
    with pytest.raises(RuntimeError):
        loss.errors(given(torch.zeros(3, 3, 16, 16, dtype=torch.uint8)))


def test_the_features_of_the_model_do_not_change(unet, loss):
    labels, sample, timestep = torch.zeros(3, dtype=torch.long), torch.randn(3, 3, 8, 8), torch.tensor([1, 2, 3])
    before = unet(sample, timestep, class_labels=labels).sample
    loss.attach(unet)
    assert torch.equal(unet(sample, timestep, class_labels=labels).sample, before)


def test_a_model_without_a_middle_block_is_refused(loss):
    with pytest.raises(ValueError, match="has_mid_block"):
        loss.attach(NestedUNetModel(**SIZES, has_mid_block=(False, False)))
