# SPDX-License-Identifier: Apache-2.0
"""Pictures and masks of every kind become the same tensor; what cannot be one is refused."""

import PIL.Image
import pytest
import torch

from diffusers_mdm.pipelines.drawing.image_inputs import read_images, read_masks
from tests.pipelines.tiny_tasks import eight_bit_pictures, masks

TENSORS = eight_bit_pictures(8)
ARRAYS = TENSORS.permute(0, 2, 3, 1).numpy()
PICTURES = [PIL.Image.fromarray(array) for array in ARRAYS]
FRACTIONS = TENSORS / 255


@pytest.mark.parametrize(
    ("given", "eight_bit"),
    [
        (PICTURES, True),
        (list(ARRAYS), True),
        (ARRAYS, True),
        (list(TENSORS), True),
        (TENSORS, True),
        ([TENSORS[:1], TENSORS[1:]], True),
        (FRACTIONS, False),
        (list(FRACTIONS), False),
        (FRACTIONS.permute(0, 2, 3, 1).numpy(), False),
    ],
)
def test_every_kind_is_the_same_tensor(given, eight_bit):
    pictures = read_images(given, 3)
    assert pictures.pixels.dtype == torch.float32
    assert torch.equal(pictures.pixels, FRACTIONS)
    assert pictures.is_eight_bit == eight_bit


def test_one_picture_is_a_batch_of_one():
    for given in (PICTURES[0], ARRAYS[0], TENSORS[0], FRACTIONS[0]):
        assert torch.equal(read_images(given, 3).pixels, FRACTIONS[:1])


def test_grey_pictures_for_models_of_either_kind():
    grey = PICTURES[0].convert("L")
    assert read_images(grey, 1).pixels.shape == (1, 1, 8, 8)
    colour = read_images(grey, 3).pixels
    assert torch.equal(colour[:, 0], colour[:, 2])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (None, "`image` is of type NoneType; expected PIL images"),
        ("cat.png", "`image` is of type str"),
        ([], "`image` is an empty list"),
        ([PICTURES[0], TENSORS[0]], "all of one kind"),
        (TENSORS[0, 0], r"shape \(8, 8\)"),
        ([TENSORS[0], TENSORS[1, :, :4]], r"sizes \[\(4, 8\), \(8, 8\)\]"),
        (TENSORS[:, :1], r"\[1\] channels, the model draws 3"),
        (TENSORS.permute(0, 2, 3, 1), r"\[8\] channels"),
        (FRACTIONS * 2 - 1, r"from -.* `image / 2 \+ 0.5`"),
        (FRACTIONS * float("nan"), "from nan"),
        (TENSORS.int(), "type torch.int32; expected floats"),
        (PICTURES[0].convert("RGBA"), "transparency .mode RGBA."),
        (PIL.Image.new("I;16", (8, 8)), "mode I;16"),
    ],
)
def test_what_is_no_picture_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        read_images(given, 3)


def test_masks_of_every_kind():
    mask = masks(8)
    expected = mask.bool()
    pil = [PIL.Image.fromarray((entry[0].numpy() * 255).astype("uint8")) for entry in mask]
    for given in (
        mask,
        expected,
        list(mask[:, 0]),
        list(mask),
        pil,
        mask.permute(0, 2, 3, 1).numpy(),
        list(expected[:, 0].numpy()),
        mask * 0.6,
    ):
        assert torch.equal(read_masks(given), expected)
    assert not read_masks(mask * 0.4).any()
    with pytest.raises(ValueError, match="`mask_image` is of type NoneType"):
        read_masks(None)
    with pytest.raises(ValueError, match=r"`mask_image` has \[3\] channels"):
        read_masks(TENSORS)
