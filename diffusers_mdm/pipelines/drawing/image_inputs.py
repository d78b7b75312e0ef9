# SPDX-License-Identifier: Apache-2.0
"""Converting input images and masks, of any kind that diffusers accepts, to tensors of a size that the model
supports.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, cast

import numpy as np
import PIL.Image
import torch

from diffusers_mdm.pyramid import Size
from diffusers_mdm.rgb_images import area_filter, is_deep, to_rgb

# One image or several: PIL images, arrays `(H, W, C)` or `(B, H, W, C)`, tensors `(C, H, W)` or `(B, C, H, W)`.
ImageInput = (
    PIL.Image.Image | np.ndarray | torch.Tensor | list[PIL.Image.Image] | list[np.ndarray] | list[torch.Tensor]
)
# Maps the height and width of an image to those to which it is resized.
Fit = Callable[[int, int], Size]
_KINDS = "PIL images, arrays (H, W, C) or tensors (C, H, W), one or a list of them, or a batch of them in one array"


class Images(NamedTuple):
    """Input images.

    Attributes:
        pixels: `(B, C, H, W)` float32 in [0, 1]; None if latents were passed.
        is_eight_bit: whether all values are multiples of 1/255, because 8-bit images were passed.
        given_sizes: heights and widths before images were resized.
        latents: `(B, c, h, w)` of unit variance, instead of pixels.
    """

    pixels: torch.Tensor | None
    is_eight_bit: bool
    given_sizes: tuple[Size, ...] = ()
    latents: torch.Tensor | None = None

    @property
    def tensor(self) -> torch.Tensor:
        """The input, pixels or latents."""
        return cast(torch.Tensor, self.pixels if self.latents is None else self.latents)


def read_images(
    image: Any, num_channels: int, name: str = "image", fit: Fit | None = None, num_latent_channels: int | None = None
) -> Images:
    """Convert images of any kind to one tensor.

    PIL images are rotated upright (EXIF). Transparent areas become white, whether they are given by an alpha channel
    (also of arrays and tensors), a palette, or a transparent colour.

    Args:
        image: PIL images, arrays `(H, W, C)` or tensors `(C, H, W)`, one or a list of them, or a batch of them in one
            array or tensor; floats in [0, 1], or 8-bit or 16-bit integers (uint8, uint16). C can be one more than
            `num_channels`, for an alpha channel.
        num_channels: C of the model's images.
        name: name of the argument in error messages.
        fit: returns the size to which each image is resized, by area averaging or bicubic enlargement; None keeps the
            sizes.
        num_latent_channels: tensors with this number of channels are latents, which can have any values and are not
            resized; None for a model on pixels.

    Raises:
        ValueError: the object is of another kind, images have different sizes or a wrong number of channels, or values
            are outside [0, 1].
    """
    entries = _entries(image, name)
    if num_latent_channels is not None and _are_latents(entries, num_latent_channels, num_channels):
        batches = [(entry if entry.ndim == 4 else entry[None]).float() for entry in entries]
        _check_one_size(batches, name)
        return Images(None, False, latents=torch.cat(batches))
    tensors = [_read_one(entry, num_channels, name) for entry in entries]
    eight_bit = all(entry.dtype == torch.uint8 for entry in tensors)
    pixels = [_opaque(_as_fraction(entry, name), num_channels, eight_bit) for entry in tensors]
    channels = {entry.shape[-3] for entry in pixels}
    if channels != {num_channels}:
        raise ValueError(
            f"`{name}` has {sorted(channels)} channels, but the model has {num_channels}; expected arrays "
            f"(height, width, {num_channels}) or tensors ({num_channels}, height, width)."
        )
    given_sizes = tuple(_size(entry) for entry in pixels)
    if fit is not None:
        pixels = [_resized(entry, fit(*_size(entry)), eight_bit=eight_bit) for entry in pixels]
    _check_one_size(pixels, name)
    return Images(torch.cat(pixels), eight_bit, given_sizes)


def read_masks(mask_image: Any, name: str = "mask_image", fit: Fit | None = None) -> torch.Tensor:
    """Convert masks of any kind to one tensor: `(B, 1, H, W)` bool, True (at least half of white) where to repaint.

    White is 1 for floats, 255 for 8-bit and 65535 for 16-bit integers; for integers that are all 0 or 1 it is 1.
    Transparent areas of PIL images are not repainted.

    Args:
        mask_image: PIL images, arrays `(H, W)`, `(H, W, 1)` or `(B, H, W, 1)`, tensors `(H, W)`, `(1, H, W)` or
            `(B, 1, H, W)`, one or a list of them; bool, floats in [0, 1], or integers.
        name: name of the argument in error messages.
        fit: returns the size to which each mask is resized; a pixel of a smaller mask is repainted if any part of it
            is. None keeps the sizes.

    Raises:
        ValueError: as for `read_images`; or integers of which none is at least half of white, such as labels.
    """
    masks = [_as_mask(entry, name) for entry in _entries(mask_image, name, flat=True)]
    channels = {entry.shape[-3] for entry in masks}
    if channels != {1}:
        raise ValueError(
            f"`{name}` has {sorted(channels)} channels; expected one: arrays (height, width) or tensors (1, height, "
            "width)."
        )
    if fit is not None:
        masks = [_resized_mask(entry, fit(*_size(entry))) for entry in masks]
    _check_one_size(masks, name)
    return torch.cat(masks)


def fitting_size(
    height: int,
    width: int,
    sides: Sequence[int],
    multiples: Sequence[int],
    resize_to: int | None = None,
    sizes: Mapping[int, Sequence[Size]] = MappingProxyType({}),
) -> Size:
    """Return the size to which an image is resized: its own if it has the size of a level, otherwise that of another
    level.

    An image with the aspect ratio of one of a level's `sizes` is resized to that. Otherwise the aspect ratio is kept
    as closely as the multiples allow; nothing is cropped.

    Args:
        height: pixels.
        width: pixels.
        sides: sides of the levels that can take the image, innermost first; the larger of height and width will be
            one.
        multiples: for each of these levels, the number of which height and width must be multiples.
        resize_to: side of the level for images of other sizes; the largest by default.
        sizes: for sides of levels, further sizes that these levels have.
    """
    longer, shorter = max(height, width), min(height, width)
    side = longer if longer in sides else resize_to or sides[-1]
    if longer not in sides and any((height, width) in sizes.get(known, ()) for known in sides):
        return height, width
    same = [size for size in sizes.get(side, ()) if longer not in sides and has_shape_of(height, width, [size])]
    if same:
        return same[0]
    multiple = multiples[list(sides).index(side)]
    fitted = max(round(shorter * side / longer / multiple), 1) * multiple
    return (side, fitted) if height >= width else (fitted, side)


def has_shape_of(height: int, width: int, sizes: Sequence[Size]) -> bool:
    """Return whether height and width have the aspect ratio of one of these sizes, up to rounding to integers."""
    return any(abs(height * wide - width * high) <= max(high, wide) for high, wide in sizes)


def _entries(image: Any, name: str, flat: bool = False) -> list[Any]:
    """Yield the images, or batches of images, one by one."""
    entries = list(image) if isinstance(image, (list, tuple)) else [image]
    if not entries:
        raise ValueError(f"`{name}` is an empty list; pass at least one image.")
    kinds = {
        kind for kind in (PIL.Image.Image, np.ndarray, torch.Tensor) for entry in entries if isinstance(entry, kind)
    }
    known = all(isinstance(entry, (PIL.Image.Image, np.ndarray, torch.Tensor)) for entry in entries)
    if not known or len(kinds) > 1:
        found = ", ".join(sorted({type(entry).__name__ for entry in entries}))
        raise ValueError(f"`{name}` is of type {found}; expected {_KINDS}, all of one kind.")
    for entry in entries:
        shape = entry.size if isinstance(entry, PIL.Image.Image) else tuple(entry.shape)
        allowed = (2,) if isinstance(entry, PIL.Image.Image) else (2, 3, 4) if flat else (3, 4)
        if len(shape) not in allowed or 0 in shape:
            raise ValueError(f"`{name}` has an entry of shape {shape}; expected {_KINDS}, none of them empty.")
        if isinstance(entry, torch.Tensor) and (entry.is_meta or entry.is_quantized or entry.layout != torch.strided):
            raise ValueError(
                f"`{name}` has a tensor on the device {entry.device} of layout {entry.layout} and type {entry.dtype}; "
                "expected one with plain numbers."
            )
    return [entry.detach() if isinstance(entry, torch.Tensor) else entry for entry in entries]


def _are_latents(entries: list[Any], num_latent_channels: int, num_channels: int) -> bool:
    """Return whether these are latents and not images, which is decided by the number of channels, as in diffusers."""
    if num_latent_channels == num_channels or not isinstance(entries[0], torch.Tensor):
        return False
    return all(entry.shape[-3] == num_latent_channels and entry.dtype.is_floating_point for entry in entries)


def _size(entry: torch.Tensor) -> Size:
    return entry.shape[-2], entry.shape[-1]


def _check_one_size(entries: list[torch.Tensor], name: str) -> None:
    sizes = sorted({_size(entry) for entry in entries})
    if len(sizes) > 1:
        raise ValueError(
            f"`{name}` has images of the sizes {sizes} (height, width), after resizing to the model's sizes; "
            f"pass images of the same size and shape."
        )


def _read_one(entry: Any, num_channels: int, name: str) -> torch.Tensor:
    """Convert an image, or a batch of images, to `(B, C, H, W)` without changing the type of its numbers."""
    if isinstance(entry, PIL.Image.Image):
        return _from_array(_pil_to_array(entry, "L" if num_channels == 1 else "RGB", "white", name), name)
    if isinstance(entry, np.ndarray):
        return _from_array(entry, name)
    return entry if entry.ndim == 4 else entry[None]


def _pil_to_array(image: PIL.Image.Image, mode: str, background: str, name: str) -> np.ndarray:
    """Convert a PIL image to an 8-bit array `(H, W, C)`."""
    try:
        pixels = np.array(to_rgb(image, background).convert(mode))
    except ValueError as error:
        raise ValueError(
            f"`{name}` has an image of mode {image.mode} that cannot be read: {error}. Pass its values as an array "
            "of floats in [0, 1]."
        ) from error
    return pixels[..., None] if pixels.ndim == 2 else pixels


def _from_array(array: np.ndarray, name: str) -> torch.Tensor:
    """Convert an array `(H, W, C)` or `(B, H, W, C)` to a tensor `(B, C, H, W)`."""
    try:
        # A copy, since arrays may be read-only, or have negative strides or a different byte order.
        tensor = torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("="), order="C"))
    except (TypeError, ValueError) as error:
        raise ValueError(f"`{name}` is an array of type {array.dtype}; expected floats in [0, 1] or uint8.") from error
    return (tensor if tensor.ndim == 4 else tensor[None]).permute(0, 3, 1, 2)


def _as_fraction(entry: torch.Tensor, name: str) -> torch.Tensor:
    """Convert values to float32 in [0, 1]."""
    if entry.dtype in (torch.uint8, torch.uint16):
        return entry.to(torch.float32) / (255 if entry.dtype == torch.uint8 else 65535)
    if not entry.dtype.is_floating_point:
        raise ValueError(
            f"`{name}` has values of type {entry.dtype}; expected floats in [0, 1], uint8 or uint16 (16 bits)."
        )
    entry = entry.to(torch.float32)
    low, high = (float(bound) for bound in torch.aminmax(entry))
    if not (low >= 0 and high <= 1):
        raise ValueError(
            f"`{name}` has values from {low:g} to {high:g}; expected 0 (black) to 1 (white), or 8-bit whole numbers "
            "(uint8). Convert images in [-1, 1] with `image / 2 + 0.5`."
        )
    return entry


def _opaque(pixels: torch.Tensor, num_channels: int, eight_bit: bool) -> torch.Tensor:
    """Put images with one more channel than the model has, which is alpha, on white."""
    if num_channels not in (1, 3) or pixels.shape[-3] != num_channels + 1:
        return pixels
    colours, alpha = pixels[:, :-1], pixels[:, -1:]
    mixed = colours * alpha + (1 - alpha)
    return (mixed * 255).round() / 255 if eight_bit else mixed


def _as_mask(entry: Any, name: str) -> torch.Tensor:
    """Convert a mask, or a batch of masks, to `(B, C, H, W)` bool."""
    values = _mask_values(entry, name)
    if values.dtype == torch.bool:
        return values
    if values.dtype.is_floating_point or values.dtype.is_complex:
        return _as_fraction(values, name) >= 0.5
    values = values.to(torch.int64)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65535:
        raise ValueError(
            f"`{name}` has whole numbers from {low} to {high}; expected 0 (keep) to 1, 255 or 65535 (repaint)."
        )
    white = 1 if high <= 1 else 255 if high <= 255 else 65535
    if 0 < 2 * high < white:
        raise ValueError(
            f"`{name}` has whole numbers from {low} to {high}, none of which is at least half of white ({white}), "
            f"so nothing would be repainted. Pass white where to repaint; for labels, pass for example `labels == 3`."
        )
    return 2 * values >= white


def _mask_values(entry: Any, name: str) -> torch.Tensor:
    """Return the numbers of a mask, or of a batch of masks, as `(B, C, H, W)`."""
    if isinstance(entry, PIL.Image.Image):
        if not is_deep(entry) or "transparency" in entry.info:
            return _from_array(_pil_to_array(entry, "L", "black", name), name)
        entry = np.asarray(entry)
    if isinstance(entry, np.ndarray):
        return _from_array(entry[..., None] if entry.ndim == 2 else entry, name)
    entry = entry[None] if entry.ndim == 2 else entry
    return entry if entry.ndim == 4 else entry[None]


def _resized(pixels: torch.Tensor, size: Size, *, eight_bit: bool) -> torch.Tensor:
    """Resize images `(B, C, H, W)` in [0, 1]; 8-bit values remain 8-bit values."""
    if _size(pixels) == size:
        return pixels
    resized = _resampled(pixels, size, area_filter(_size(pixels), size)).clamp(0, 1)
    return (resized * 255).round() / 255 if eight_bit else resized


def _resized_mask(mask: torch.Tensor, size: Size) -> torch.Tensor:
    """Resize masks `(B, 1, H, W)`; a pixel is True if any part of it was."""
    if _size(mask) == size:
        return mask
    shrinks = area_filter(_size(mask), size) == PIL.Image.Resampling.BOX
    return _resampled(mask.float(), size, PIL.Image.Resampling.BOX if shrinks else PIL.Image.Resampling.NEAREST) > 0


def _resampled(pixels: torch.Tensor, size: Size, kernel: PIL.Image.Resampling) -> torch.Tensor:
    planes = pixels.detach().cpu().flatten(0, 1).numpy()
    resized = [np.asarray(PIL.Image.fromarray(plane).resize(size[::-1], kernel)) for plane in planes]
    return torch.from_numpy(np.stack(resized)).unflatten(0, pixels.shape[:2]).to(pixels.device)
