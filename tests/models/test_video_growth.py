# SPDX-License-Identifier: Apache-2.0
"""Models of images become models of clips and keep what they know, bit for bit."""

import dataclasses

import pytest
import torch

from diffusers_mdm import LevelConfig, NestedUNetModel
from tests.models.tiny_models import randomize

SAME = {"rtol": 0, "atol": 0}
TEMPORAL_ROW = LevelConfig(
    (32, 32, 32),
    (1, 1, 1),
    (0, 0, 0),
    norm_num_groups=8,
    micro_conditioning_defaults=(16.0,),
    num_frames=4,
    temporal_layers_per_block=(1, 0, 1),
    temporal_downsample=True,
    temporal_rotary=True,
)


def as_clips(inputs: dict, num_frames: int) -> dict:
    """Every level repeated `num_frames` times, with a little of another image in each frame but the first."""
    clips = [level.unsqueeze(2).repeat(1, 1, num_frames, 1, 1) for level in inputs["sample"]]
    return {**inputs, "sample": [clip + 0.1 * torch.arange(num_frames)[:, None, None] for clip in clips]}


@torch.no_grad()
def test_single_frames_are_predicted_bit_for_bit(model, inputs):
    expected = model(**inputs).sample
    video = model.to_video(4)
    torch.testing.assert_close(video(**inputs).sample, expected, **SAME)
    single = video(**as_clips(inputs, 1)).sample
    torch.testing.assert_close([level[:, :, 0] for level in single], expected, **SAME)


@torch.no_grad()
def test_frames_begin_as_images_of_their_own(model, inputs):
    clips = as_clips(inputs, 4)
    frames = model.to_video(4)(**clips).sample
    for frame in range(4):
        alone = model(**{**inputs, "sample": [level[:, :, frame] for level in clips["sample"]]}).sample
        # More rows may choose other kernels.
        torch.testing.assert_close([level[:, :, frame] for level in frames], alone, rtol=0, atol=2e-5)


@torch.no_grad()
def test_trained_frames_know_of_each_other(model, inputs):
    video = randomize(model.to_video(4), seed=1)
    clips = as_clips(inputs, 4)
    before = video(**clips).sample
    clips["sample"][0][:, :, 3] *= -1
    for one, other in zip(before, video(**clips).sample, strict=True):
        assert ((one - other).abs().amax(dim=(0, 1, 3, 4)) > 1e-5).all()


def test_spatial_weights_keep_their_names(model):
    video = model.to_video(4)
    old, new = model.state_dict(), video.state_dict()
    assert all(torch.equal(new[name], tensor) for name, tensor in old.items())
    assert {name.split(".temporal_attentions.")[0] for name in new.keys() - old.keys()} == {
        "levels.0.encoder.down_blocks.0",
        "levels.0.encoder.down_blocks.1",
        "levels.0.decoder.up_blocks.0",
        "levels.0.decoder.up_blocks.1",
        "levels.1.encoder.down_blocks.1",
        "levels.1.decoder.up_blocks.0",
    }
    assert video.level_frames == (4, 4)
    assert video.config.temporal_rotary == (True, True)
    assert video.num_parameters() > model.num_parameters()


def test_temporal_layers_are_where_they_are_asked_for(model):
    video = model.to_video(2, temporal_layers_per_block=((0, 2), None), temporal_rotary=False)
    assert video.config.temporal_layers_per_block == ((0, 2), None)
    assert video.config.temporal_rotary is None
    assert len(video.levels[0].encoder.down_blocks[1].temporal_attentions) == 2 * 2


@torch.no_grad()
def test_model_of_images_becomes_the_inside_of_a_model_of_clips(model, inputs):
    video = model.add_level(TEMPORAL_ROW)
    assert video.level_frames == (1, 1, 4)
    assert video.sample_sizes == (8, 16, 16)
    before = model(**inputs).sample
    torch.testing.assert_close(video(**inputs).sample, before, **SAME)
    images = [level.unsqueeze(2) for level in inputs["sample"]]
    after = video(**{**inputs, "sample": [*images, torch.randn(1, 3, 4, 16, 16)]}).sample
    torch.testing.assert_close([level[:, :, 0] for level in after[:2]], before, **SAME)
    assert torch.equal(after[2], torch.zeros(1, 3, 4, 16, 16))
    assert list(video.state_dict())[: len(model.state_dict())] == list(model.state_dict())


@torch.no_grad()
def test_clips_grow_in_time_and_in_space(model, inputs):
    frames = model.add_level(TEMPORAL_ROW)
    spatial = LevelConfig((8, 16), (1, 1), (0, 0), norm_num_groups=4, num_frames=4)
    video = frames.add_level(spatial).add_level(dataclasses.replace(TEMPORAL_ROW, num_frames=16))
    assert video.level_frames == (1, 1, 4, 4, 16)
    assert video.sample_sizes == (8, 16, 16, 32, 32)
    clip = [inputs["sample"][0][:1].unsqueeze(2), inputs["sample"][1][:1].unsqueeze(2), torch.randn(1, 3, 4, 16, 16)]
    given = {name: value for name, value in inputs.items() if name not in ("sample", "added_cond_kwargs")}
    given = {name: value[:1] for name, value in given.items()}
    expected = frames(sample=clip, **given).sample
    clip += [torch.randn(1, 3, 4, 32, 32), torch.randn(1, 3, 16, 32, 32)]
    torch.testing.assert_close(video(sample=clip, **given).sample[:3], expected, **SAME)


def test_growth_into_video_keeps_dtype_and_mode(model):
    video = model.to(torch.bfloat16).train().to_video(2)
    assert video.dtype == torch.bfloat16
    assert video.training


def test_what_cannot_become_video_is_refused(model, config):
    with pytest.raises(ValueError, match="2 frames or more"):
        model.to_video(1)
    with pytest.raises(ValueError, match="an image model"):
        model.to_video(4).to_video(8)
    with pytest.raises(ValueError, match="one for each of the 2 levels"):
        model.to_video(4, temporal_layers_per_block=((1, 1),))
    with pytest.raises(ValueError, match="No level would have temporal attention"):
        model.to_video(4, temporal_layers_per_block=(None, None))
    narrow = {**config, "block_out_channels": ((16, 16), (16, 16)), "cross_attention_dim": 24}
    with pytest.raises(ValueError, match="multiple of 32"):
        NestedUNetModel(**narrow).to_video(4)
    model.fuse_qkv_projections()
    with pytest.raises(ValueError, match="unfuse projections first"):
        model.to_video(4)
