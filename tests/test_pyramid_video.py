# SPDX-License-Identifier: Apache-2.0
"""Pyramids of clips: frames are skipped, pixels averaged; images join as clips of one frame."""

import pytest
import torch
import torch.nn.functional as F

from diffusers_mdm.pyramid import (
    build_pyramid,
    check_pyramid,
    level_ratios,
    pyramid_noise,
)


def test_frames_are_skipped_and_pixels_averaged():
    clips = torch.rand(2, 3, 8, 16, 24)
    pyramid = build_pyramid(clips, (8, 8, 16), (2, 8, 8))
    assert [tuple(level.shape) for level in pyramid] == [(2, 3, 2, 8, 12), (2, 3, 8, 8, 12), (2, 3, 8, 16, 24)]
    assert pyramid[-1] is clips
    for frame in range(8):
        torch.testing.assert_close(pyramid[1][:, :, frame], F.avg_pool2d(clips[:, :, frame], 2))
    assert torch.equal(pyramid[0], pyramid[1][:, :, [0, 4]])


def test_frames_and_pixels_may_shrink_in_one_step():
    clips = torch.rand(1, 3, 4, 8, 8)
    inner = build_pyramid(clips, (4, 8), (1, 4))[0]
    torch.testing.assert_close(inner[:, :, 0], F.avg_pool2d(clips[:, :, 0], 2))


def test_without_numbers_every_level_has_all_frames():
    clips = torch.rand(1, 3, 3, 8, 8)
    levels = build_pyramid(clips, (4, 8))
    assert [level.shape[2] for level in levels] == [3, 3]
    assert level_ratios(levels) == [1.0, 2.0]


def test_ratio_counts_tiled_frames():
    """Four times the frames tiled in a square have twice the side."""
    pyramid = build_pyramid(torch.rand(1, 3, 16, 16, 16), (8, 8, 8, 16), (1, 4, 16, 16))
    assert level_ratios(pyramid) == [1.0, 2.0, 4.0, 8.0]


@pytest.mark.parametrize(
    ("sides", "frames", "message"),
    [
        ((8, 8), (3, 8), "dividing the next"),
        ((8, 8), (4, 4), "Clips of 8 frames"),
        ((8, 8), (0, 8), "dividing the next"),
        ((8,), (4, 8), "expected 1 numbers"),
        ((8, 8), (8, 8), "whole number above 1"),
        ((4, 4), (4, 8), "last side"),
    ],
)
def test_frames_that_do_not_divide_are_refused(sides, frames, message):
    with pytest.raises(ValueError, match=message):
        build_pyramid(torch.zeros(1, 3, 8, 8, 8), sides, frames)


def test_images_have_no_frames_to_choose_from():
    with pytest.raises(ValueError, match="clips are"):
        build_pyramid(torch.zeros(1, 3, 8, 8), (4, 8), (1, 4))


@pytest.mark.parametrize(
    ("inner", "outer", "message"),
    [
        ((1, 3, 1, 8, 8), (1, 3, 8, 8), "5|dimensions"),
        ((1, 3, 4, 8, 8), (1, 3, 4, 8, 8), "not larger"),
        ((1, 3, 4, 8, 8), (1, 3, 2, 16, 16), "not larger"),
        ((1, 3, 1, 8, 8), (1, 3, 4, 4, 4), "not larger"),
        ((1, 3, 4, 8, 8), (1, 3, 4, 8, 16), "not larger"),
        ((1, 3, 4, 8, 8), (2, 3, 16, 8, 8), "cannot have larger batches"),
    ],
)
def test_what_is_no_pyramid_of_clips_is_refused(inner, outer, message):
    with pytest.raises(ValueError, match=message):
        check_pyramid([torch.zeros(inner), torch.zeros(outer)])


def test_noise_of_a_clip_depends_on_its_own_generator_only():
    shapes = [(2, 3, 1, 4, 4), (2, 3, 4, 4, 4)]
    batch = pyramid_noise(shapes, [torch.Generator().manual_seed(seed) for seed in (1, 2)])
    alone = pyramid_noise([(1, *shape[1:]) for shape in shapes], [torch.Generator().manual_seed(2)])
    for level, single in zip(batch, alone, strict=True):
        assert torch.equal(level[1:], single)
