# SPDX-License-Identifier: Apache-2.0
"""Pictures and masks that users hand in, of any kind the host takes, as tensors."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import PIL.Image
import torch

# One picture or several: PIL images, arrays `(H, W, C)` or `(B, H, W, C)`, tensors `(C, H, W)` or `(B, C, H, W)`.
ImageInput = (
    PIL.Image.Image | np.ndarray | torch.Tensor | list[PIL.Image.Image] | list[np.ndarray] | list[torch.Tensor]
)
# Modes of PIL with 8 bits a channel: converting them to RGB changes no more than the colour space.
_COLOUR_MODES = ("RGB", "L", "P", "1", "CMYK", "YCbCr", "HSV", "LAB")
_KINDS = "PIL images, arrays (H, W, C) or tensors (C, H, W), one or a list of them, or a batch of them in one array"


class Pictures(NamedTuple):
    """Pictures as they were given.

    Attributes:
        pixels: `(B, C, H, W)` float32 in [0, 1].
        is_eight_bit: whether every value is a whole number of 255ths, because 8-bit pictures were given.
    """

    pixels: torch.Tensor
    is_eight_bit: bool


def read_images(image: Any, num_channels: int, name: str = "image") -> Pictures:
    """Bring pictures of any kind to one tensor. Nothing is resized, cropped or made opaque.

    Args:
        image: PIL images, arrays `(H, W, C)` or tensors `(C, H, W)`, one or a list of them, or a batch of them in one
            array or tensor; floats in [0, 1], or 8-bit whole numbers.
        num_channels: C of the model.
        name: what the error message calls it.

    Raises:
        ValueError: another kind of object, pictures of several sizes, another number of channels, values outside
            [0, 1], or a picture with transparency.
    """
    entries = [_read_one(entry, num_channels, name) for entry in _entries(image, name)]
    sizes = sorted({tuple(entry.shape[-2:]) for entry in entries})
    if len(sizes) > 1:
        raise ValueError(f"`{name}` has pictures of the sizes {sizes} (height, width); pass pictures of one size.")
    channels = {entry.shape[-3] for entry in entries}
    if channels != {num_channels}:
        raise ValueError(
            f"`{name}` has {sorted(channels)} channels, the model draws {num_channels}; expected arrays "
            f"(height, width, {num_channels}) or tensors ({num_channels}, height, width)."
        )
    pixels = torch.cat([_as_fraction(entry, name) for entry in entries])
    return Pictures(pixels, all(entry.dtype == torch.uint8 for entry in entries))


def read_masks(mask_image: Any, name: str = "mask_image") -> torch.Tensor:
    """Bring masks of any kind to one tensor: `(B, 1, H, W)` bool, True (white, 0.5 and more) where to repaint.

    Args:
        mask_image: PIL images, arrays `(H, W)`, `(H, W, 1)` or `(B, H, W, 1)`, tensors `(H, W)`, `(1, H, W)` or
            `(B, 1, H, W)`, one or a list of them; bool, floats in [0, 1], or 8-bit whole numbers.
        name: what the error message calls it.

    Raises:
        ValueError: see `read_images`.
    """
    entries = _entries(mask_image, name, flat=True)
    flat = [_with_channel(entry) for entry in entries]
    return read_images(flat if len(flat) > 1 else flat[0], num_channels=1, name=name).pixels >= 0.5


def _with_channel(mask: Any) -> Any:
    """A mask with an axis for its one channel, as float or 8-bit."""
    if isinstance(mask, PIL.Image.Image):
        return mask
    if isinstance(mask, torch.Tensor):
        mask = mask.float() if mask.dtype == torch.bool else mask
        return mask[None] if mask.ndim == 2 else mask
    mask = mask.astype(np.float32) if mask.dtype == bool else mask
    return mask[..., None] if mask.ndim == 2 else mask


def _entries(image: Any, name: str, flat: bool = False) -> list[Any]:
    """The pictures, or batches of pictures, one by one."""
    entries = list(image) if isinstance(image, (list, tuple)) else [image]
    if not entries:
        raise ValueError(f"`{name}` is an empty list; pass at least one picture.")
    kinds = {
        kind for kind in (PIL.Image.Image, np.ndarray, torch.Tensor) for entry in entries if isinstance(entry, kind)
    }
    known = all(isinstance(entry, (PIL.Image.Image, np.ndarray, torch.Tensor)) for entry in entries)
    if not known or len(kinds) > 1:
        found = ", ".join(sorted({type(entry).__name__ for entry in entries}))
        raise ValueError(f"`{name}` is of type {found}; expected {_KINDS}, all of one kind.")
    for entry in entries:
        if not isinstance(entry, PIL.Image.Image) and entry.ndim not in ((2, 3, 4) if flat else (3, 4)):
            raise ValueError(f"`{name}` has an entry of shape {tuple(entry.shape)}; expected {_KINDS}.")
    return entries


def _read_one(entry: Any, num_channels: int, name: str) -> torch.Tensor:
    """One picture, or one batch of them, as `(B, C, H, W)` in its own type of numbers."""
    if isinstance(entry, PIL.Image.Image):
        return torch.from_numpy(_pil_to_array(entry, num_channels, name)).permute(2, 0, 1)[None]
    if isinstance(entry, np.ndarray):
        batch = torch.from_numpy(np.ascontiguousarray(entry if entry.ndim == 4 else entry[None]))
        return batch.permute(0, 3, 1, 2)
    return entry if entry.ndim == 4 else entry[None]


def _pil_to_array(image: PIL.Image.Image, num_channels: int, name: str) -> np.ndarray:
    """A PIL image as `(H, W, C)` of 8-bit numbers: grey for one channel, else RGB."""
    if image.has_transparency_data:
        raise ValueError(
            f"`{name}` has a picture with transparency (mode {image.mode}), and no model knows what is behind it: "
            "paste it on a background, or drop the transparency with `image.convert('RGB')`."
        )
    if image.mode not in _COLOUR_MODES:
        raise ValueError(
            f"`{name}` has a picture of mode {image.mode}; expected one of {', '.join(_COLOUR_MODES)}. Bring its "
            "values to 8 bits first."
        )
    pixels = np.array(image.convert("L" if num_channels == 1 else "RGB"))
    return pixels[..., None] if pixels.ndim == 2 else pixels


def _as_fraction(entry: torch.Tensor, name: str) -> torch.Tensor:
    """Values as float32 in [0, 1]."""
    if entry.dtype == torch.uint8:
        return entry.to(torch.float32) / 255
    if not entry.dtype.is_floating_point:
        raise ValueError(f"`{name}` has values of type {entry.dtype}; expected floats in [0, 1] or uint8.")
    entry = entry.to(torch.float32)
    low, high = (float(bound) for bound in torch.aminmax(entry))
    if not (low >= 0 and high <= 1):
        raise ValueError(
            f"`{name}` has values from {low:g} to {high:g}; expected 0 (black) to 1 (white), or 8-bit whole numbers "
            "(uint8). Pictures in [-1, 1] become `image / 2 + 0.5`."
        )
    return entry
