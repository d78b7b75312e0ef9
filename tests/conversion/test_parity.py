# SPDX-License-Identifier: Apache-2.0
"""Converted models give the numbers that were recorded from the published code."""

import pytest
import torch
from safetensors.torch import load_file

from diffusers_mdm.conversion.apple_mdm import convert_apple_checkpoint
from diffusers_mdm.conversion.community_mdm import convert_community_checkpoint
from tests.conversion.recorded_models import APPLE_MODELS, COMMUNITY_NESTED, GOLDEN, checkpoint, config, predict

# Observed in float32 on CPU: at most 3.4e-6.
TOLERANCE = 1e-5
VARIATIONS = {"pred": {}, "pred_default_micros": {"micros": False}, "pred_no_mask": {"mask": False}}


def assert_close(outputs: list[torch.Tensor], io: dict[str, torch.Tensor], name: str) -> None:
    for index, output in enumerate(outputs):
        torch.testing.assert_close(output, io[f"{name}.{index}"], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", APPLE_MODELS)
def test_apple_checkpoint_predicts_what_was_recorded(name, memory_format):
    unet = convert_apple_checkpoint(checkpoint(name), config(name)).unet.to(memory_format=memory_format)
    io = load_file(GOLDEN / name / "io.safetensors")
    # Recorded before the bound, which the published code applies in a wrapper.
    unet.register_to_config(output_bound=None)
    recorded = [variation for variation in VARIATIONS if f"{variation}.0" in io]
    assert "pred" in recorded
    for variation in recorded:
        assert_close(predict(unet, io, **VARIATIONS[variation]), io, variation)


def test_bounded_output_is_what_was_recorded():
    unet = convert_apple_checkpoint(checkpoint("unet_options"), config("unet_options")).unet
    io = load_file(GOLDEN / "unet_options" / "io.safetensors")
    assert unet.config["output_bound"] == 1.5
    assert_close(predict(unet, io), io, "pred_scaled")


def test_inner_level_predicts_as_alone():
    unet = convert_apple_checkpoint(checkpoint("nested2_unet"), config("nested2_unet"), num_levels=2).unet
    io = load_file(GOLDEN / "nested2_unet" / "io.safetensors")
    whole = convert_apple_checkpoint(checkpoint("nested2_unet"), config("nested2_unet")).unet
    inner = {
        **{name: io[name] for name in io if not name.startswith("x_t.")},
        "x_t.0": io["x_t.1"],
        "x_t.1": io["x_t.2"],
    }
    assert unet.num_levels == 2
    for alone, within in zip(predict(unet, inner), predict(whole, inner), strict=True):
        torch.testing.assert_close(alone, within, rtol=0, atol=1e-5)


def test_community_checkpoint_predicts_what_was_recorded():
    unet = convert_community_checkpoint(GOLDEN / "community_unet").unet
    io = load_file(GOLDEN / "community_unet" / "io.safetensors")
    assert_close(predict(unet, io), io, "pred")


@pytest.mark.skipif(not COMMUNITY_NESTED.is_dir(), reason="20 MB of weights that are not part of the repository")
def test_nested_community_checkpoint_predicts_what_was_recorded():
    converted = convert_community_checkpoint(COMMUNITY_NESTED)
    io = load_file(COMMUNITY_NESTED / "io.safetensors")
    assert_close(predict(converted.unet, io), io, "pred")
    assert converted.unet.sample_sizes == (8, 32)
