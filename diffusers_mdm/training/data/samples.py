# SPDX-License-Identifier: Apache-2.0
"""Decoding one stored sample, an image or a clip, to an entry of a batch, for all kinds of data."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image

from ...checked_values import is_whole_number
from ...pyramid import Size
from ..recipe.buckets import most_square
from ..recipe.data import DataRecipe
from ..seeds import derive_seed
from .clips.frame_choice import FrameChoice
from .clips.frames import clip_frames, clip_pixels
from .images import CENTER, Crop, Interpolation, cropped_pixels, open_image
from .micro_conditioning import check_offsets, micro_values
from .skip_budget import UnusableSampleError, shown
from .text.caption_choice import CaptionChoice, Captions, Texts

# Random stream of a sample, distinct from those of the training loop, of `frame_choice` and of `caption_choice`.
_CROP_STREAM = 102


@dataclass(frozen=True)
class Sample:
    """An image or clip as it is stored.

    Attributes:
        image: the bytes or the path of an image or clip file; for clips also the path of a folder of frames.
        captions: its caption, or several, of which one is used per epoch.
        fields: other columns by name.
        label: its class, for class-conditional models.
        other_captions: captions from other columns, by column, for the recipe's `other_caption_columns`.
    """

    image: bytes | str | Path
    captions: Texts
    fields: Mapping[str, Any] = field(default_factory=dict)
    label: int | None = None
    other_captions: Mapping[str, Texts] = field(default_factory=dict)

    @property
    def all_captions(self) -> Captions:
        """The captions of which one is chosen."""
        return Captions(self.captions, self.other_captions)


class DecodedSample(NamedTuple):
    """A decoded sample: uint8 (3, H, W), or (3, F, S, S) for a clip, its micro-conditioning by name, and its class."""

    pixels: torch.Tensor
    micro_conditioning: dict[str, float]
    label: int | None


@dataclass(frozen=True)
class SampleDecoder:
    """Decodes, crops and resizes samples.

    Attributes:
        side: S, in pixels.
        interpolation: how images are resized.
        random_crop: crop at a random position along the longer side, not in the centre.
        min_image_side: images with a shorter side are refused.
        micro_conditioning: names that the model is conditioned on, with the values used if none is known.
        micro_conditioning_offsets: numbers added to these values.
        frames: chooses the frames if samples are clips; None for images.
        captions: chooses the caption of a sample that has several.
        buckets: sizes (height, width) to which images are cropped instead of squares; none for squares.
    """

    side: int
    interpolation: Interpolation = "area"
    random_crop: bool = False
    min_image_side: int = 0
    micro_conditioning: Mapping[str, float] = field(default_factory=dict)
    micro_conditioning_offsets: Mapping[str, float] = field(default_factory=dict)
    frames: FrameChoice | None = None
    captions: CaptionChoice = field(default_factory=CaptionChoice)
    buckets: tuple[Size, ...] = ()

    @property
    def size(self) -> Size:
        """Height and width of samples for which no other size is given: squares or, with buckets, the one that is
        closest to a square.
        """
        return most_square(self.buckets) if self.buckets else (self.side, self.side)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the pixels of such samples: (3, S, S), or (3, F, S, S) for clips of several frames."""
        num_frames = () if self.frames is None or self.frames.num_frames == 1 else (self.frames.num_frames,)
        return (3, *num_frames, *self.size)

    @property
    def is_random(self) -> bool:
        """Whether the pixels of a decoded sample depend on its position in the stream."""
        return self.random_crop or (self.frames is not None and self.frames.is_random)

    def centered(self) -> "SampleDecoder":
        """Return the decoder without randomness: one size, and crops and frames from the middle, first captions."""
        frames = None if self.frames is None else replace(self.frames, random=False)
        buckets = (self.size,) if self.buckets else ()
        captions = CaptionChoice(random=False)
        return replace(self, random_crop=False, frames=frames, captions=captions, buckets=buckets)

    def decode(self, sample: Sample, position: int, seed: int, size: Size | None = None) -> DecodedSample:
        """Decode, crop and resize an image or frames of a clip; random choices depend only on (seed, position).

        Args:
            sample: the stored image or clip.
            position: its position in the stream.
            seed: seed of random choices.
            size: height and width of the image, by default those of `shape`.

        Raises:
            UnusableSampleError: if it is damaged, too small or too short, or one of its numeric fields is invalid.
        """
        crop = random_crop(seed, position) if self.random_crop else CENTER
        choice = self.frames
        if choice is None:
            image = open_image(sample.image)
            short: float = self._short_side(image)
            wanted = self.size if size is None else size
            pixels = cropped_pixels(image, wanted, self.interpolation, crop)
            short = self._square_equivalent(image, wanted, short)
        else:
            frames = clip_frames(sample.image, lambda count: choice.indices(count, seed, position))
            first = next(frames)
            short = self._short_side(first)
            pixels = clip_pixels(itertools.chain([first], frames), self.side, self.interpolation, crop)
            pixels = pixels.reshape(self.shape)
        try:
            numbers = micro_values(self.micro_conditioning, short, sample.fields, self.micro_conditioning_offsets)
        except ValueError as error:
            raise UnusableSampleError(str(error)) from error
        return DecodedSample(pixels, numbers, sample.label)

    def _square_equivalent(self, image: Image.Image, size: Size, short: float) -> float:
        """Return the shorter side of the square image that would be resized by the same factor as this one."""
        if size[0] == size[1]:
            return short
        return self.side * min(image.height / size[0], image.width / size[1])

    def _short_side(self, image: Image.Image) -> int:
        short = min(image.size)
        if short < self.min_image_side:
            raise UnusableSampleError(
                f"it has {image.width} x {image.height} pixels, but `min_image_side` is {self.min_image_side}"
            )
        return short


def sample_decoder(
    recipe: DataRecipe,
    side: int,
    micro_conditioning: Mapping[str, float],
    num_frames: int = 1,
    buckets: Sequence[Size] = (),
) -> SampleDecoder:
    """Return the decoder that a recipe describes, for training.

    Raises:
        ValueError: if the recipe has an offset for a micro-condition that the model does not have, or several frames
            for images.
    """
    check_offsets(micro_conditioning, recipe.micro_conditioning_offsets)
    if num_frames < 1 or (num_frames > 1 and recipe.video_column is None):
        raise ValueError(
            f"`num_frames` is {num_frames}; expected at least 1, and exactly 1 without `data.video_column`, which "
            f"names the column with the clips."
        )
    frames = None if recipe.video_column is None else FrameChoice(num_frames, recipe.frame_stride)
    return SampleDecoder(
        side,
        recipe.image_interpolation_mode,
        not recipe.center_crop,
        recipe.min_image_side,
        dict(micro_conditioning),
        dict(recipe.micro_conditioning_offsets),
        frames,
        CaptionChoice(dict(recipe.other_caption_columns)),
        tuple(buckets),
    )


def class_of(value: Any, what: str = "its class") -> int:
    """Return the class of a sample, which must be an integer that fits in a tensor.

    Raises:
        UnusableSampleError: if it is something else; the message begins with `what`.
    """
    if not is_whole_number(value, 1 - 2**31, 2**31 - 1):
        raise UnusableSampleError(f"{what} is {shown(value)}, expected an integer")
    return value


def random_crop(seed: int, position: int) -> Crop:
    """Return the random crop for the sample at `position`."""
    number = derive_seed(seed, position, _CROP_STREAM)
    return Crop((number & 0x7FFFFFFF) / 0x7FFFFFFF, (number >> 31 & 0x7FFFFFFF) / 0x7FFFFFFF)
