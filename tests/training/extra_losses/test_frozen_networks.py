# SPDX-License-Identifier: Apache-2.0
"""Maps of features of frozen networks."""

import importlib.util

import pytest
import torch
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    Dinov2Config,
    Dinov2Model,
    ResNetConfig,
    ResNetModel,
    ViTImageProcessor,
)

from diffusers_mdm.evaluation.features import INCEPTION_PACKAGE
from diffusers_mdm.training.extra_losses.frozen_networks import as_map, open_network, resized

WIDTHS = {"hidden_size": 8, "num_hidden_layers": 6, "num_attention_heads": 2, "intermediate_size": 16}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Tiny random vision models of three kinds."""
    folder = tmp_path_factory.mktemp("networks")
    torch.manual_seed(0)
    vision = {**WIDTHS, "image_size": 32, "patch_size": 8}
    text = {**WIDTHS, "vocab_size": 20, "max_position_embeddings": 8, "eos_token_id": 2, "bos_token_id": 1}
    Dinov2Model(Dinov2Config(**vision, mlp_ratio=2)).save_pretrained(folder / "dinov2")
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision)).save_pretrained(folder / "clip")
    widths = {"embedding_size": 8, "hidden_sizes": [8, 8, 8], "depths": [1, 1, 1], "layer_type": "basic"}
    ResNetModel(ResNetConfig(**widths)).save_pretrained(folder / "resnet")
    for name in ("dinov2", "resnet"):
        ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder / name)
    CLIPImageProcessor(size={"shortest_edge": 32}).save_pretrained(folder / "clip")
    return folder


@pytest.mark.parametrize(("name", "last"), [("dinov2", (8, 4, 4)), ("clip", (8, 4, 4)), ("resnet", (8, 2, 2))])
def test_vision_models_of_transformers_have_maps(folder, name, last):
    network = open_network(str(folder / name), None, "cpu")
    assert network.side == 32
    images = (torch.rand(2, 3, 32, 32) * 2 - 1).requires_grad_()
    maps = network(images)
    assert 1 < len(maps) <= 4
    assert maps[-1].shape == (2, *last)
    assert all(one.ndim == 4 and one.isfinite().all() for one in maps)
    maps[-1].square().sum().backward()
    assert images.grad.abs().sum() > 0
    assert not any(parameter.requires_grad for parameter in network.network.parameters())


def test_positions_are_interpolated_for_images_of_another_side(folder):
    network = open_network(str(folder / "dinov2"), 48, "cpu")
    assert network(torch.zeros(1, 3, 48, 48))[-1].shape == (1, 8, 6, 6)
    with pytest.raises(ValueError, match="patches of 8 pixels"):
        open_network(str(folder / "dinov2"), 33, "cpu")


def test_tokens_before_those_of_patches_are_left_out():
    tokens = torch.arange(1 + 4 + 9).float()[None, :, None]  # a class token and four registers
    expected = torch.arange(5.0, 14.0).reshape(1, 1, 3, 3)
    assert torch.equal(as_map(tokens, 24, 8), expected)
    assert torch.equal(as_map(tokens, 24, None), expected)


def test_a_name_of_nothing_is_refused(tmp_path):
    with pytest.raises(ValueError, match="neither one of 'inception'"):
        open_network(str(tmp_path), None, "cpu")


def test_images_are_resized_only_if_they_have_another_side():
    images = torch.rand(1, 3, 8, 8)
    assert resized(images, 8) is images
    assert resized(images, 4).shape == (1, 3, 4, 4)


def test_inception_has_maps_of_several_resolutions():
    if importlib.util.find_spec(INCEPTION_PACKAGE) is None:
        pytest.skip(f"{INCEPTION_PACKAGE} is not installed")
    with pytest.raises(ValueError, match="75 pixels"):
        open_network("inception", 32, "cpu")
    images = (torch.rand(1, 3, 75, 75) * 2 - 1).requires_grad_()
    maps = open_network("inception", 75, "cpu")(images)
    assert [one.shape[1] for one in maps] == [64, 192, 288, 768]
    maps[0].sum().backward()
    assert images.grad.isfinite().all()
