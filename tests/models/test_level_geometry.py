# SPDX-License-Identifier: Apache-2.0
"""Sizes of levels follow from the resolutions that each of them has."""

import pytest

from diffusers_mdm import LevelConfig
from diffusers_mdm.models.level_geometry import LevelGeometry, level_sides, side_ratios
from tests.models.tiny_models import two_level_config, video_config


def row(num_resolutions: int, **settings: object) -> LevelConfig:
    per_resolution = (1,) * num_resolutions
    return LevelConfig((32,) * num_resolutions, per_resolution, per_resolution, **settings)


def test_sides_are_products_of_the_ratios():
    rows = [row(3), row(2), row(3)]
    assert side_ratios(rows) == (1, 2, 8)
    assert level_sides(16, rows) == (16, 32, 128)


def test_frames_grow_in_place_of_sides_where_they_are_resampled():
    rows = [row(1), row(3, num_frames=4, temporal_downsample=True), row(2, num_frames=4)]
    assert LevelGeometry.of(rows).ratios == (1, 1, 2)
    assert LevelGeometry.of(rows).frames == (1, 4, 4)


def test_level_0_is_halved_between_its_resolutions():
    geometry = LevelGeometry.of([row(4), row(2)])
    assert geometry.multiples == (8, 8)
    assert geometry.has_temporal_attention == (False, False)


@pytest.mark.parametrize(("layers", "multiple"), [((0, 0), 1), ((1, 0), 1), ((0, 1), 2)])
def test_temporal_attention_halves_the_sides_once_more(layers, multiple):
    """Of a level of twice the side of level 0: its finer resolution is even whatever the side of level 0."""
    clips = [row(1, num_frames=2), row(2, num_frames=2, temporal_layers_per_block=layers)]
    geometry = LevelGeometry.of(clips)
    assert geometry.multiples == (1, multiple)
    assert geometry.has_temporal_attention == (False, any(layers))


@pytest.mark.parametrize("make_config", [two_level_config, video_config])
def test_there_is_one_entry_for_each_level(make_config):
    rows = LevelConfig.levels_from(make_config())
    geometry = LevelGeometry.of(rows)
    assert len(geometry.ratios) == len(geometry.frames) == len(geometry.multiples) == len(rows)
