# SPDX-License-Identifier: Apache-2.0
"""A level by itself: its embedding of time and micro-conditions, and what it passes inwards."""

import pytest
import torch

from diffusers_mdm import LevelConfig
from diffusers_mdm.models.blocks import BlockSettings
from diffusers_mdm.models.level import Level, LevelEmbedding, sinusoids

ROW = LevelConfig(
    (8, 8),
    (1, 1),
    (0, 0),
    norm_num_groups=4,
    normalize_input=True,
    micro_conditioning_keys=("scale", "beauty"),
    micro_conditioning_defaults=(64.0, 0.5),
)


@pytest.fixture(scope="module")
def embedding() -> LevelEmbedding:
    return LevelEmbedding(ROW, 32)


@pytest.fixture(scope="module")
def level() -> Level:
    """Around a level whose finest resolution has 4 channels."""
    settings = BlockSettings.of_level(
        ROW, time_embed_dim=32, norm_eps=1e-5, num_attention_heads=2, attention_norm_num_groups=4, text_dim=None
    )
    return Level(ROW, settings, in_channels=3, out_channels=3, inner_channels=4)


def test_sinusoids_are_sines_then_cosines():
    embedded = sinusoids(torch.tensor([0.0, 1.0]), 8, torch.float32)
    assert embedded[0].tolist() == [0.0] * 4 + [1.0] * 4
    frequencies = 10000 ** (-torch.arange(4) / 4)
    torch.testing.assert_close(embedded[1], torch.cat([frequencies.sin(), frequencies.cos()]))


@torch.no_grad()
def test_what_is_not_given_takes_its_default_and_a_scale_no_more_than_it(embedding):
    timestep = torch.tensor([3, 900])
    plain = embedding(timestep, {}, None)
    defaults = {"scale": torch.full((2,), 64.0), "beauty": torch.full((2,), 0.5)}
    assert torch.equal(embedding(timestep, defaults, None), plain)
    assert torch.equal(embedding(timestep, {"scale": torch.full((2,), 512.0)}, None), plain)
    for key, value in (("scale", 32.0), ("beauty", 0.75)):
        assert not torch.allclose(embedding(timestep, {key: torch.full((2,), value)}, None), plain)


@torch.no_grad()
def test_text_and_classes_are_added(embedding):
    timestep, pooled = torch.tensor([3, 900]), torch.randn(2, 32)
    torch.testing.assert_close(embedding(timestep, {}, pooled), embedding(timestep, {}, None) + pooled)


@torch.no_grad()
def test_a_normalised_level_does_not_see_how_strong_its_input_is(level):
    sample, timestep = torch.randn(2, 3, 8, 8), torch.tensor([3, 900])
    weak, strong = (level("encode", scale * sample, None, timestep, {}, None, None)[0] for scale in (1.0, 50.0))
    torch.testing.assert_close(weak, strong, rtol=0, atol=1e-4)


@torch.no_grad()
def test_a_new_level_passes_nothing_inwards_and_takes_nothing_back(level):
    sample, timestep = torch.randn(2, 3, 8, 8), torch.tensor([3, 900])
    hidden_states, skips, inner, embedding = level("encode", sample, None, timestep, {}, None, None)
    assert (tuple(inner.shape), bool(inner.any())) == ((2, 4, 4, 4), False)
    decoded = [level("decode", hidden_states, skips, given, embedding, None)[0] for given in (inner, inner + 1)]
    assert torch.equal(*decoded)
    assert decoded[0].shape == sample.shape


@torch.no_grad()
def test_what_the_layers_make_of_timestep_and_conditions_can_be_computed_before(level):
    sample, timestep, pooled = torch.randn(2, 3, 8, 8), torch.tensor([4.0, 700.0]), torch.randn(2, 32)
    expected = level("encode", sample, None, timestep, {}, pooled, None)
    modulations = tuple(level("embed", timestep, {}, pooled))
    assert len(modulations) == sum(len(block.resnets) for block in (*level.encoder.blocks, *level.decoder.blocks))
    ready = level("encode", sample, None, timestep, {}, pooled, None, 1, modulations)
    torch.testing.assert_close(ready[2], expected[2])
    inner = torch.randn(2, 4, 4, 4)
    whole = level("decode", expected[0], expected[1], inner, expected[3], None)
    torch.testing.assert_close(level("decode", ready[0], ready[1], inner, ready[3], None), whole)
