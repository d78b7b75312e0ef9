# SPDX-License-Identifier: Apache-2.0
"""Layouts of clips, and what runs over frames, against their formulas."""

import pytest
import torch
from torch import nn

from diffusers_mdm.models import temporal
from diffusers_mdm.models.frames import (
    fold_frames,
    on_tiled_frames,
    tile_frames,
    unfold_frames,
    untile_frames,
)
from diffusers_mdm.models.temporal import FrameDownsample, FrameUpsample, TemporalAttention
from tests.models.tiny_models import softmax_attention

ROUNDING = {"rtol": 0, "atol": 2e-5}
SAME = {"rtol": 0, "atol": 0}


def test_rows_are_frames_of_one_clip_after_the_other():
    clips = torch.rand(2, 3, 4, 5, 6)
    rows, num_frames = fold_frames(clips)
    assert (num_frames, tuple(rows.shape)) == (4, (8, 3, 5, 6))
    assert torch.equal(rows[5], clips[1, :, 1])
    assert torch.equal(unfold_frames(rows, 4), clips)


def test_tiles_are_laid_row_by_row():
    clip = torch.rand(2, 3, 9, 4, 5)
    image = tile_frames(clip)
    assert tuple(image.shape) == (2, 3, 12, 15)
    for frame in range(9):
        top, left = 4 * (frame // 3), 5 * (frame % 3)
        assert torch.equal(image[:, :, top : top + 4, left : left + 5], clip[:, :, frame])
    assert torch.equal(untile_frames(image, 9), clip)


def test_frames_that_fill_no_square_are_refused():
    with pytest.raises(ValueError, match="1, 4, 9, 16"):
        tile_frames(torch.zeros(1, 3, 8, 4, 4))
    with pytest.raises(ValueError, match="multiples of 2"):
        untile_frames(torch.zeros(1, 3, 5, 4), 4)


@torch.no_grad()
def test_layer_on_tiled_frames_runs_over_the_seams():
    conv = nn.Conv2d(3, 2, 3, padding=1)
    clip = torch.rand(2, 3, 4, 4, 4)
    rows, _ = fold_frames(clip)
    tiled = unfold_frames(on_tiled_frames(conv, rows, 4), 4)
    torch.testing.assert_close(tile_frames(tiled), conv(tile_frames(clip)), **SAME)
    alone = unfold_frames(conv(rows), 4)
    torch.testing.assert_close(tiled[..., 1:3, 1:3], alone[..., 1:3, 1:3], **ROUNDING)
    assert not torch.allclose(tiled[:, :, 0, :, 3], alone[:, :, 0, :, 3])


def rotated(states: torch.Tensor) -> torch.Tensor:
    """Pairs of neighbouring channels of `(B, F, heads, 32)` as complex numbers, turned by frame * 10000^(-2i / 32)."""
    pairs = torch.view_as_complex(states.double().unflatten(-1, (-1, 2)).contiguous())
    frames = torch.arange(states.shape[1], dtype=torch.float64)
    angles = frames[:, None] * 10000.0 ** (-torch.arange(0, 32, 2, dtype=torch.float64) / 32)
    turned = pairs * torch.polar(torch.ones_like(angles), angles)[None, :, None, :]
    return torch.view_as_real(turned).flatten(-2)


@torch.no_grad()
@pytest.mark.parametrize("has_rotary", [False, True])
def test_temporal_attention_is_its_formula(has_rotary):
    layer = TemporalAttention(64, 1e-5, has_rotary)
    tokens = torch.randn(6, 5, 64)
    query, key, value = (layer.attn.split_heads(part) for part in layer.attn.project(layer.norm(tokens)))
    assert query.shape[2:] == (2, 32)
    if has_rotary:
        query, key = rotated(query), rotated(key)
    attended = softmax_attention(query, key, value).float().flatten(2)
    expected = tokens + layer.attn.to_out[0](attended)
    expected = expected + layer.ff(layer.ff.norm(expected))
    torch.testing.assert_close(layer.attend(tokens), expected, **ROUNDING)


@torch.no_grad()
def test_only_positions_tell_the_order_of_frames():
    clip = torch.randn(1, 32, 4, 4, 4)
    swapped = clip.flip(2)
    for has_rotary in (False, True):
        layer = TemporalAttention(32, 1e-5, has_rotary)
        forwards = unfold_frames(layer(fold_frames(clip)[0], 4), 4)
        backwards = unfold_frames(layer(fold_frames(swapped)[0], 4), 4).flip(2)
        assert torch.allclose(forwards, backwards, atol=1e-5) is not has_rotary


@torch.no_grad()
def test_clips_and_places_do_not_see_each_other():
    layer = TemporalAttention(32, 1e-5, True)
    clips = torch.randn(2, 32, 4, 4, 6)
    together = layer(fold_frames(clips)[0], 4)
    alone = layer(fold_frames(clips[1:])[0], 4)
    torch.testing.assert_close(together[4:], alone, **ROUNDING)
    changed = clips.clone()
    changed[:, :, 2] += 1.0
    assert not torch.allclose(layer(fold_frames(changed)[0], 4)[0], together[0], atol=1e-4)


@torch.no_grad()
def test_many_places_are_taken_in_parts(monkeypatch):
    layer = TemporalAttention(32, 1e-5, True)
    rows = torch.randn(8, 32, 8, 8)
    expected = layer(rows, 4)
    monkeypatch.setattr(temporal, "MAX_ATTENTION_ROWS", 7)
    torch.testing.assert_close(layer(rows, 4), expected, **ROUNDING)


@torch.no_grad()
def test_zeroed_temporal_attention_changes_no_bit():
    layer = TemporalAttention(32, 1e-5, True)
    layer.zero_init_()
    rows = torch.randn(4, 32, 4, 4)
    torch.testing.assert_close(layer(rows, 4), rows, **SAME)
    torch.testing.assert_close(layer(rows, 1), rows, **SAME)


@torch.no_grad()
def test_frame_resampling_is_a_convolution_over_frames():
    clips = torch.randn(2, 8, 4, 3, 2)
    lines = clips.permute(0, 3, 4, 1, 2).flatten(0, 2)
    down, up = FrameDownsample(8), FrameUpsample(8)
    halved = unfold_frames(down(fold_frames(clips)[0], 4), 2)
    assert tuple(halved.shape) == (2, 8, 2, 3, 2)
    line = halved[1, :, :, 2, 0]
    torch.testing.assert_close(line, down.conv(lines.unflatten(0, (2, 3, 2))[1, 2, 0][None])[0], **ROUNDING)
    doubled = unfold_frames(up(fold_frames(clips)[0], 4), 8)
    twice = clips[1, :, [0, 0, 1, 1, 2, 2, 3, 3], 2, 0]
    torch.testing.assert_close(doubled[1, :, :, 2, 0], up.conv(twice[None])[0], **ROUNDING)
