# SPDX-License-Identifier: Apache-2.0
"""Nearest images: recall of captions, copies, and coverage."""

import pytest
import torch

from diffusers_mdm.evaluation.retrieval import nearest, retrieve, thumbnail
from tests.evaluation.tiny_images import random_images


def test_a_noisy_copy_is_nearest_to_its_original():
    images = torch.randn(6, 3, 16, 16)
    distances, numbers = nearest(images[[4, 1, 1]] + 0.1 * torch.randn(3, 3, 16, 16), images)
    assert numbers.tolist() == [4, 1, 1]
    assert (distances < 0.2 * (3 * 16 * 16) ** 0.5).all()


def test_copies_are_found_at_no_distance():
    real = random_images(9)
    found = retrieve(real.pixels[:3], real.captions[:3], thumbnail(real.pixels), real.captions)
    assert found.own_image == 1.0
    assert found.covered == pytest.approx(3 / 9)
    assert found.distance <= 0.5 / 255 < found.real_distance


def test_wrong_captions_are_misses():
    real = random_images(9)
    wrong = [*real.captions[1:], real.captions[0]]
    assert retrieve(real.pixels, wrong, thumbnail(real.pixels), real.captions).own_image == 0.0


def test_two_captions_may_have_identical_images():
    real = random_images(4)
    twice = torch.cat([real.pixels, real.pixels[:1]])
    captions = [*real.captions, "the first again"]
    found = retrieve(real.pixels[:1], ["the first again"], thumbnail(twice), captions)
    assert found.own_image == 1.0


def test_nothing_to_compare_is_refused():
    real = random_images(1)
    with pytest.raises(ValueError, match="at least two reference images; there are 1 and 1"):
        retrieve(real.pixels, real.captions, thumbnail(real.pixels), real.captions)
