# SPDX-License-Identifier: Apache-2.0
"""The yardstick knows what siblings tell, and nothing that is held out."""

import style_from_siblings
import torch

from diffusers_mdm.evaluation.recall import Gallery


def gallery_of_negatives(number: int = 40) -> Gallery:
    """Emoji in two styles, of which the second is the first one's negative; the last two are held out in it."""
    first = torch.randn(number, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    held_out = ["none"] * (number - 2) + ["combination"] * 2
    return Gallery(
        pixels=torch.cat([first, -first]),
        captions=[""] * (2 * number),
        styles=[0] * number + [1] * number,
        labels=[f"emoji {record}" for record in range(number)] * 2,
        holdouts=["none"] * number + held_out,
    )


def test_a_linear_style_is_carried_over():
    """78 emoji say what the negative of 48 numbers is."""
    scores = style_from_siblings.score(gallery_of_negatives(80), ridge=1e-6)
    assert (scores.num_drawn, scores.style, scores.label, scores.image) == (2, 1.0, 1.0, 1.0)


def test_held_out_images_are_not_fitted():
    gallery = gallery_of_negatives()
    records, before = style_from_siblings.predict_held_out(gallery, ridge=1.0)
    gallery.pixels[records] = 100.0
    assert torch.equal(style_from_siblings.predict_held_out(gallery, ridge=1.0)[1], before)


def test_fit_recovers_a_linear_map():
    inputs = torch.randn(200, 5, generator=torch.Generator().manual_seed(1))
    weights, offset = torch.arange(15.0).view(5, 3), torch.tensor([1.0, 2.0, 3.0])
    found, constant = style_from_siblings.fit(inputs, inputs @ weights + offset, ridge=1e-6)
    torch.testing.assert_close(found.float(), weights, atol=1e-3, rtol=0)
    torch.testing.assert_close(constant.float(), offset, atol=1e-3, rtol=0)
