# SPDX-License-Identifier: Apache-2.0
"""From one stored sample to one row of a batch, for every kind of data set."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch

from .image_decoding import CENTER, Crop, Interpolation, UnusableSampleError, open_image, square_pixels
from .micro_conditioning import check_offsets, micro_values
from .order import derive_seed
from .recipe import DataRecipe

# The random streams of a row, beside those of the training loop.
_CAPTION_STREAM, _CROP_STREAM = 101, 102


@dataclass(frozen=True)
class Sample:
    """A picture as it is stored.

    Attributes:
        image: the bytes of an image file, or the path of one.
        captions: its caption, or several of which each epoch sees one.
        fields: other columns by name.
        label: its class, for models with classes.
    """

    image: bytes | str | Path
    captions: str | Sequence[str]
    fields: Mapping[str, Any] = field(default_factory=dict)
    label: int | None = None


class Row(NamedTuple):
    """A picture as it is trained on: uint8 (3, S, S), its micro-conditions by name, and its class."""

    pixels: torch.Tensor
    micro_conditioning: dict[str, float]
    label: int | None


@dataclass(frozen=True)
class SampleDecoder:
    """How samples become rows.

    Attributes:
        side: S, in pixels.
        interpolation: how pictures are resized.
        random_crop: take the square anywhere along the longer side, not in the centre.
        min_image_side: pictures with a shorter side are refused.
        micro_conditioning: names that the model is conditioned on, with the value where none is known.
        micro_conditioning_offsets: added to these values.
    """

    side: int
    interpolation: Interpolation = "area"
    random_crop: bool = False
    min_image_side: int = 0
    micro_conditioning: Mapping[str, float] = field(default_factory=dict)
    micro_conditioning_offsets: Mapping[str, float] = field(default_factory=dict)

    def decode(self, sample: Sample, position: int, seed: int) -> Row:
        """Decode, crop and resize one picture; where it is cropped depends on (seed, position) alone.

        Raises:
            UnusableSampleError: if the picture is broken or too small, or one of its numbers is none.
        """
        image = open_image(sample.image)
        short = min(image.size)
        if short < self.min_image_side:
            raise UnusableSampleError(
                f"it has {image.width} x {image.height} pixels, and `min_image_side` is {self.min_image_side}"
            )
        crop = random_crop(seed, position) if self.random_crop else CENTER
        pixels = square_pixels(image, self.side, self.interpolation, crop)
        try:
            numbers = micro_values(self.micro_conditioning, short, sample.fields, self.micro_conditioning_offsets)
        except ValueError as error:
            raise UnusableSampleError(str(error)) from error
        return Row(pixels, numbers, sample.label)


def sample_decoder(recipe: DataRecipe, side: int, micro_conditioning: Mapping[str, float]) -> SampleDecoder:
    """The decoder that a recipe describes.

    Raises:
        ValueError: if the recipe changes a micro-condition that the model does not have.
    """
    check_offsets(micro_conditioning, recipe.micro_conditioning_offsets)
    return SampleDecoder(
        side,
        recipe.image_interpolation_mode,
        not recipe.center_crop,
        recipe.min_image_side,
        dict(micro_conditioning),
        dict(recipe.micro_conditioning_offsets),
    )


def random_crop(seed: int, position: int) -> Crop:
    """The crop of the row at `position`."""
    number = derive_seed(seed, position, _CROP_STREAM)
    return Crop((number & 0x7FFFFFFF) / 0x7FFFFFFF, (number >> 31 & 0x7FFFFFFF) / 0x7FFFFFFF)


def choose_caption(captions: str | Sequence[str], seed: int, position: int) -> str:
    """The caption of the row at `position`: one of several is drawn from (seed, position); "" if there is none."""
    if isinstance(captions, str):
        return captions
    if len(captions) < 2:
        return captions[0] if captions else ""
    return captions[derive_seed(seed, position, _CAPTION_STREAM) % len(captions)]
