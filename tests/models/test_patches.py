# SPDX-License-Identifier: Apache-2.0
"""Levels whose features have one place for a square of pixels."""

import dataclasses

import pytest
import torch

from diffusers_mdm import LevelConfig, NestedUNetModel
from diffusers_mdm.conversion.apple_mdm_config import check_published_frames
from diffusers_mdm.models.level_geometry import LevelGeometry
from tests.models.tiny_models import randomize, two_level_config, video_config


def with_patches(config: dict, *patch_sizes: int) -> NestedUNetModel:
    torch.manual_seed(0)
    unet = NestedUNetModel(**{**config, "patch_size": patch_sizes}).eval()
    randomize(unet)
    return unet


def inputs_of(unet: NestedUNetModel, batch: int = 2) -> dict:
    width = unet.config["encoder_hid_dim"] or unet.config["cross_attention_dim"]
    return {
        "sample": [torch.randn(batch, 3, side, side) for side in unet.sample_sizes],
        "timestep": torch.tensor([3, 700][:batch]),
        "encoder_hidden_states": None if width is None else torch.randn(batch, 5, width),
    }


@torch.no_grad()
@pytest.mark.parametrize("patch_sizes", [(1, 2), (1, 4), (2, 2), (2, 4)])
def test_levels_grow_with_their_patches(patch_sizes):
    plain, patched = NestedUNetModel(**two_level_config()), with_patches(two_level_config(), *patch_sizes)
    ratio = plain.level_ratios[1] * patch_sizes[1] // patch_sizes[0]
    assert patched.level_ratios == (1, ratio)
    assert patched.size_multiple == plain.size_multiple * patch_sizes[0]
    given = inputs_of(patched)
    assert [level.shape for level in patched(**given).sample] == [level.shape for level in given["sample"]]
    inner = patched(**{**given, "sample": given["sample"][:1]}).sample
    assert [level.shape for level in inner] == [given["sample"][0].shape]


@torch.no_grad()
def test_a_level_with_patches_is_a_level_of_more_channels_between_shuffles():
    config = two_level_config()
    patched = with_patches(config, 1, 2)
    given = inputs_of(patched)
    level = patched.levels[1]
    seen = []
    level.encoder.conv_in.register_forward_hook(lambda module, args, output: seen.append(args[0]))
    level.decoder.conv_out.register_forward_hook(lambda module, args, output: seen.append(output))
    prediction = patched(**given).sample[1]
    noisy = given["sample"][1]
    if patched.level_configs[1].normalize_input:
        noisy = noisy / noisy.std(dim=(1, 2, 3), keepdim=True)
    for offset, channel in (((0, 0), 0), ((0, 1), 1), ((1, 0), 2), ((1, 1), 3)):
        places = noisy[:, 0, offset[0] :: 2, offset[1] :: 2]
        torch.testing.assert_close(seen[0][:, channel], places)
        torch.testing.assert_close(seen[1][:, channel], prediction[:, 0, offset[0] :: 2, offset[1] :: 2])


@torch.no_grad()
def test_a_model_grows_a_level_with_patches_around_what_it_knows():
    unet = with_patches(two_level_config(), 1, 1)
    row = dataclasses.replace(unet.level_configs[1], block_out_channels=(8,), layers_per_block=(1,))
    row = dataclasses.replace(row, attention_layers_per_block=(0,), norm_num_groups=4, patch_size=4)
    grown = unet.add_level(row).eval()
    assert grown.level_ratios[2] == 4 * unet.level_ratios[1]
    given = inputs_of(grown)
    expected = unet(**{**given, "sample": given["sample"][:2]}).sample
    torch.testing.assert_close(grown(**given).sample[:2], expected, atol=1e-5, rtol=0)
    assert grown.inner_model(2).level_configs == unet.level_configs


@torch.no_grad()
def test_patches_are_saved(tmp_path):
    unet = with_patches(two_level_config(), 1, 2)
    unet.save_pretrained(tmp_path)
    again = NestedUNetModel.from_pretrained(tmp_path).eval()
    given = inputs_of(unet)
    torch.testing.assert_close(again(**given).sample, unet(**given).sample, atol=1e-5, rtol=1e-5)
    assert [row.patch_size for row in again.level_configs] == [1, 2]


def test_patches_of_one_pixel_are_no_patches():
    one, none = with_patches(two_level_config(), 1, 1), NestedUNetModel(**two_level_config())
    assert one.level_configs == none.level_configs
    assert LevelConfig.columns_from(one.level_configs)["patch_size"] is None


def test_clips_have_patches_in_every_frame():
    config = video_config()
    patched = with_patches(config, *[2] * len(config["num_frames"]))
    plain = NestedUNetModel(**config)
    assert patched.level_ratios == plain.level_ratios
    assert patched.size_multiple == 2 * plain.size_multiple
    width = config["encoder_hid_dim"] or config["cross_attention_dim"]
    sample = [
        torch.randn(1, 3, frames, side * 2, side * 2)
        for frames, side in zip(plain.level_frames, plain.sample_sizes, strict=True)
    ]
    found = patched(sample, 5, None if width is None else torch.randn(1, 4, width)).sample
    assert [level.shape for level in found] == [level.shape for level in sample]


def test_the_multiple_counts_patches_of_temporal_levels():
    rows = LevelConfig.levels_from(NestedUNetModel(**video_config()).config)
    larger = tuple(dataclasses.replace(row, patch_size=4) for row in rows)
    assert LevelGeometry.of(larger).multiples[-1] == 4 * LevelGeometry.of(rows).multiples[-1]


@pytest.mark.parametrize(
    ("patch_sizes", "message"),
    [
        ((4, 1), "do not make level 1 a whole number of times larger"),
        ((2, 1), "would be no larger than the level inside it"),
        ((0, 1), r"patch_size\[0\] is 0"),
        ((1, 2.0), r"patch_size\[1\] is 2.0"),
        ((1, 512), r"patch_size\[1\] is 512"),
    ],
)
def test_patches_that_do_not_fit_are_refused(patch_sizes, message):
    with pytest.raises(ValueError, match=message):
        NestedUNetModel(**{**two_level_config(), "patch_size": patch_sizes})


def test_the_published_code_has_no_patches():
    with pytest.raises(ValueError, match="level 1 has patch_size 2"):
        check_published_frames(with_patches(two_level_config(), 1, 2).level_configs)
