# SPDX-License-Identifier: Apache-2.0
"""What is known of images replaces what was drawn of them, and masks are pooled so that nothing leaks."""

import torch

from diffusers_mdm.pipelines.drawing.known_pixels import KnownPixels, pool_mask

SIDES = (4, 8, 16)
LEVELS = [torch.zeros(2, 3, side, side) for side in SIDES]
KNOWN = [torch.full((2, 3, side, side), 0.5 + index / 10) for index, side in enumerate(SIDES[:2])]
CLEAN = [2 * level - 1 for level in KNOWN]


def test_levels_that_are_known_as_a_whole_are_replaced_and_others_stay():
    known = KnownPixels.whole(KNOWN, CLEAN, [torch.zeros_like(level) for level in LEVELS])
    assert len(known.noise) == 2
    held = known.put_into_samples(LEVELS, CLEAN)
    assert all(torch.equal(*pair) for pair in zip(held, [*CLEAN, LEVELS[2]], strict=True))
    shown = known.put_into_images(LEVELS)
    assert all(torch.equal(*pair) for pair in zip(shown, [*KNOWN, LEVELS[2]], strict=True))


def test_one_level_alone_is_known_as_if_it_were_the_first():
    known = KnownPixels.whole(KNOWN, CLEAN, LEVELS).of_level(1)
    assert torch.equal(known.put_into_images(LEVELS[1:2])[0], KNOWN[1])
    assert not KnownPixels.whole(KNOWN, CLEAN, LEVELS).of_level(2).pixels


def test_what_is_masked_stays_as_it_was_drawn():
    mask = torch.zeros(2, 1, 8, 8, dtype=torch.bool)
    mask[:, :, :2] = True
    drawn = pool_mask(mask, KNOWN)
    known = KnownPixels(KNOWN, CLEAN, LEVELS[:2], drawn, drawn)
    inner, outer = known.put_into_samples(LEVELS[:2], CLEAN)
    assert (inner[:, :, 0] == 0).all()
    assert (outer[:, :, :2] == 0).all()
    assert torch.equal(inner[:, :, 1:], CLEAN[0][:, :, 1:])
    assert torch.equal(outer[:, :, 2:], CLEAN[1][:, :, 2:])


def test_a_pixel_is_repainted_where_any_part_of_it_is():
    mask = torch.zeros(1, 1, 16, 16, dtype=torch.bool)
    mask[0, 0, 5, 9] = True
    pooled = pool_mask(mask, LEVELS)
    assert [level.nonzero().tolist() for level in pooled] == [[[0, 0, 1, 2]], [[0, 0, 2, 4]], [[0, 0, 5, 9]]]
