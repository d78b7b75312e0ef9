# SPDX-License-Identifier: Apache-2.0
import collections
import itertools

import pytest

from diffusers_mdm.training.data.clips.frame_choice import FrameChoice
from diffusers_mdm.training.data.skip_budget import UnusableSampleError


def test_frames_are_spread_over_the_whole_clip():
    choice = FrameChoice(4)
    assert choice.indices(4, 0, 0) == [0, 1, 2, 3]
    assert choice.indices(8, 0, 5) == [0, 2, 4, 6]
    assert choice.indices(11, 0, 0) == [0, 2, 5, 8]
    assert not choice.is_random


@pytest.mark.parametrize("stride", [1, 3])
def test_every_kth_frame_from_any_place(stride):
    choice = FrameChoice(4, stride)
    assert choice.is_random
    drawn = [choice.indices(14, 7, position) for position in range(600)]
    assert all([b - a for a, b in itertools.pairwise(frames)] == [stride] * 3 for frames in drawn)
    starts = collections.Counter(frames[0] for frames in drawn)
    last = 14 - choice.min_frames
    assert set(starts) == set(range(last + 1))
    assert min(starts.values()) > 0.5 * 600 / (last + 1)


def test_what_is_drawn_depends_on_seed_and_position_alone():
    for choice in (FrameChoice(1), FrameChoice(3, 2)):
        drawn = [choice.indices(50, 1, position) for position in range(30)]
        assert drawn == [choice.indices(50, 1, position) for position in range(30)]
        assert drawn != [choice.indices(50, 2, position) for position in range(30)]


def test_single_frames_come_from_anywhere_or_the_middle():
    assert {FrameChoice(1).indices(5, 0, position)[0] for position in range(100)} == set(range(5))
    assert FrameChoice(1, random=False).indices(5, 0, 9) == [2]
    assert FrameChoice(1, random=False).indices(1, 0, 9) == [0]


def test_windows_lie_in_the_middle_where_nothing_is_random():
    choice = FrameChoice(3, 2, random=False)
    assert not choice.is_random
    assert choice.indices(9, 0, 4) == [2, 4, 6]
    assert choice.indices(5, 0, 4) == [0, 2, 4]


@pytest.mark.parametrize(
    ("choice", "count", "message"),
    [
        (FrameChoice(4), 3, r"it has 3 frames, expected at least 4 \(4 are needed\)"),
        (FrameChoice(4, 3), 9, r"it has 9 frames, expected at least 10 \(4 are needed, 3 frames apart"),
        (FrameChoice(2), 1, "it has 1 frame, expected at least 2"),
    ],
)
def test_short_clips_are_refused(choice, count, message):
    with pytest.raises(UnusableSampleError, match=message):
        choice.indices(count, 0, 0)
    assert len(choice.indices(choice.min_frames, 0, 0)) == choice.num_frames
