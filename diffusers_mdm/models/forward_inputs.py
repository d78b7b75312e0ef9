# SPDX-License-Identifier: Apache-2.0
"""Checks of the arguments of `NestedUNetModel.forward`, and those that are computed beforehand: `TextConditioning` and
`StepEmbedding`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any, cast

import torch

from ..checked_values import check_number, describe
from ..pyramid import Pyramid, check_pyramid, check_tensor
from .level_geometry import LevelGeometry

# Scale and shift `(B, C)` of the second norm of a residual layer.
Modulation = tuple[torch.Tensor, ...]
# The embedding of timestep and conditions after its silu, `(B, D)`, or what the residual layers make of it.
Embedding = torch.Tensor | tuple[Modulation, ...]


@dataclasses.dataclass
class TextConditioning:
    """An encoded prompt: everything that the model computes from it independently of the timestep.

    Args:
        hidden_states: `(B, L, D)`, projected text features.
        pooled: `(B, T)`, the text vector that is added to every level's time embedding.
        attention_mask: `(B, L)` bool, True for tokens that are attended to; None for all.
        keys_values: key and value `(B, L, heads, d)` of each attention layer with text, in `modules()` order; None to
            compute them at every call.
    """

    hidden_states: torch.Tensor
    pooled: torch.Tensor
    attention_mask: torch.Tensor | None = None
    keys_values: tuple[tuple[torch.Tensor, torch.Tensor], ...] | None = None

    def tensors(self) -> list[torch.Tensor | None]:
        """Return all tensors, in the order that `with_tensors` expects."""
        flat = [part for pair in self.keys_values or () for part in pair]
        return [self.hidden_states, self.pooled, self.attention_mask, *flat]

    def with_tensors(self, tensors: Sequence[torch.Tensor | None]) -> TextConditioning:
        """Return a copy with other tensors in place of `tensors()`."""
        hidden_states, pooled, mask, *flat = tensors
        if hidden_states is None or pooled is None:
            raise ValueError("The text features and their mean are missing.")
        pairs = cast("list[torch.Tensor]", flat)
        keys_values = None if self.keys_values is None else tuple(zip(pairs[::2], pairs[1::2], strict=True))
        return TextConditioning(hidden_states, pooled, mask, keys_values)

    def to(self, device: torch.device | str | int, non_blocking: bool = False) -> TextConditioning:
        """Move to another device; accelerate calls this if a level is on another device than the text."""
        return self.with_tensors(
            [None if tensor is None else tensor.to(device, non_blocking=non_blocking) for tensor in self.tensors()]
        )

    def first_samples(self, num_samples: int) -> TextConditioning:
        """Return the texts of the first `num_samples` samples, for outer levels with a smaller batch."""
        if num_samples == self.hidden_states.shape[0]:
            return self
        return self.with_tensors([None if tensor is None else tensor[:num_samples] for tensor in self.tensors()])

    def only(self, index: int) -> TextConditioning:
        """Return the text of one sample, as a batch of one."""
        return self.with_tensors([None if tensor is None else tensor[index : index + 1] for tensor in self.tensors()])


@dataclasses.dataclass
class StepEmbedding:
    """The timestep of one step, and everything that the model computes from it and the conditions alone.

    Args:
        timesteps: t of each sample, `(B,)`.
        levels: modulations of all residual layers of each level, in the order of `Level.embed`.
    """

    timesteps: torch.Tensor
    levels: tuple[tuple[Modulation, ...], ...]


def modulations_of(timestep: Any, index: int, batch: int) -> tuple[Modulation, ...] | None:
    """Return the modulations of level `index` for its first `batch` samples; None if `timestep` is not embedded.

    Raises:
        ValueError: the timestep was embedded for fewer levels.
    """
    if not isinstance(timestep, StepEmbedding):
        return None
    if index >= len(timestep.levels):
        raise ValueError(
            f"`timestep` was embedded for {len(timestep.levels)} levels, but level {index} of `sample` needs it, too; "
            "call `embed_timesteps` of the model that runs."
        )
    if batch == timestep.timesteps.shape[0]:
        return timestep.levels[index]
    return tuple((scale[:batch], shift[:batch]) for scale, shift in timestep.levels[index])


def masked_mean(hidden_states: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Return the mean over the tokens that `mask` keeps; over all tokens without a mask; zero if none is kept.

    Args:
        hidden_states: `(B, L, D)`.
        mask: `(B, L)`, nonzero where a token counts.

    Returns:
        `(B, D)`.
    """
    if mask is None:
        return hidden_states.mean(dim=1)
    weights = mask.to(hidden_states.dtype).unsqueeze(-1)
    return (hidden_states * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)


def check_sample(pyramid: Pyramid, geometry: LevelGeometry, in_channels: int) -> None:
    """Check that a pyramid fits the inner levels of a model.

    Args:
        pyramid: levels, innermost first.
        geometry: geometry of the model.
        in_channels: input channels of the model.

    Raises:
        ValueError: the number, size, frames or channels of the levels are wrong.
    """
    check_pyramid(pyramid)
    for index, level in enumerate(pyramid):
        check_tensor(level, f"sample[{index}]", "a noisy level", is_floating=True)
    num_levels, ratios = len(pyramid), geometry.ratios
    if num_levels > len(ratios):
        raise ValueError(
            f"`sample` has {num_levels} levels; the model has {len(ratios)}, with sides in the ratios {ratios} "
            f"(innermost first)."
        )
    multiple = geometry.multiples[num_levels - 1]
    height, width = pyramid[0].shape[-2:]
    if height % multiple or width % multiple:
        even = (
            " Temporal attention halves the sides once more."
            if any(geometry.has_temporal_attention[:num_levels])
            else ""
        )
        raise ValueError(
            f"Level 0 of `sample` is {height} x {width}; both must be multiples of {multiple}.{even} Crop or pad."
        )
    for index, (level, ratio) in enumerate(zip(pyramid, ratios[:num_levels], strict=True)):
        if level.shape[1] != in_channels:
            raise ValueError(
                f"Level {index} of `sample` has {level.shape[1]} channels; the model takes {in_channels}."
            )
        if tuple(level.shape[-2:]) != (height * ratio, width * ratio):
            raise ValueError(
                f"Level {index} of `sample` is {level.shape[-2]} x {level.shape[-1]}; level 0 is {height} x {width} "
                f"and level {index} of this model is {ratio} times larger: expected {height * ratio} x "
                f"{width * ratio}."
            )
    _check_frames(pyramid, geometry.frames[:num_levels])


def _check_frames(pyramid: Pyramid, expected: tuple[int, ...]) -> None:
    """Check that clips have the model's numbers of frames.

    Single images are accepted if no level resamples frames.
    """
    given = tuple(level.shape[2] if level.ndim == 5 else 1 for level in pyramid)
    takes_images = len(set(expected)) == 1
    if given == expected or (takes_images and set(given) == {1}):
        return
    also = ", or a single frame at each" if takes_images else ""
    raise ValueError(
        f"`sample` has {given} frames, innermost level first; this model takes {expected}{also}. Pass clips as "
        f"(batch, channels, frames, height, width), cut to that length."
    )


def check_text(config: Mapping[str, Any], states: torch.Tensor, mask: torch.Tensor | None) -> None:
    """Check the width of text features `(B, L, D)` and the shape `(B, L)` of their mask."""
    width = config["encoder_hid_dim"] or config["cross_attention_dim"]
    if width is None:
        raise ValueError("This model has no text (`cross_attention_dim` is None).")
    check_tensor(states, "encoder_hidden_states", f"a tensor (batch, tokens, {width}), or the result of `encode_text`")
    if states.ndim != 3 or states.shape[-1] != width or states.shape[1] == 0:
        raise ValueError(
            f"`encoder_hidden_states` has shape {tuple(states.shape)}; expected (batch, tokens, {width}). Is this the "
            "text encoder the model was trained with?"
        )
    if mask is None:
        return
    check_tensor(mask, "encoder_attention_mask", "a tensor (batch, tokens), zero where there is padding")
    if mask.shape != states.shape[:2]:
        raise ValueError(
            f"`encoder_attention_mask` has shape {tuple(mask.shape)}; expected {tuple(states.shape[:2])}, one entry "
            "for each token of `encoder_hidden_states`."
        )


def check_text_fits(text: torch.Tensor | TextConditioning | None, has_text: bool) -> None:
    """Check that text is passed if, and only if, the model takes text, and that it is features or encoded text."""
    if has_text != (text is not None):
        raise ValueError(
            "This model takes text: pass `encoder_hidden_states` (see MDMPipeline.encode_prompt)."
            if has_text
            else "This model has no text (`cross_attention_dim` is None), but `encoder_hidden_states` was passed."
        )
    if text is not None and not isinstance(text, TextConditioning):
        check_tensor(
            text, "encoder_hidden_states", "a tensor (batch, tokens, channels) or the result of `encode_text`"
        )


def check_classes(labels: torch.Tensor | None, num_classes: int | None) -> None:
    """Check that class labels `(B,)` are passed if, and only if, the model has classes, and that they are in range."""
    if (num_classes is not None) != (labels is not None):
        raise ValueError(
            "This model is conditioned on classes: pass `class_labels` of shape (batch,)."
            if num_classes is not None
            else "`class_labels` was passed, but this model has no classes (`num_class_embeds` is None)."
        )
    if labels is None or num_classes is None:
        return
    check_tensor(labels, "class_labels", "a tensor (batch,)", is_floating=False)
    # Reading values on an accelerator would make every step wait for it, and a compiled graph cannot read them.
    # Tensors of other classes may have no values, such as the fake tensors with which the memory of training is
    # estimated.
    has_values = type(labels) is torch.Tensor and labels.device.type == "cpu" and labels.numel() > 0
    if has_values and not torch.compiler.is_compiling():
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= num_classes:
            raise ValueError(f"`class_labels` run from {low} to {high}; expected 0 to {num_classes - 1}.")


def micro_conditions(
    given: Mapping[str, Any] | None, known: Collection[str], batch: int, device: torch.device
) -> dict[str, torch.Tensor]:
    """Return the micro-conditioning values for each sample, `(batch,)`.

    Raises:
        TypeError: `given` is not a dict, or one of its values is not a number.
        ValueError: the model does not have a key, or the number of values is wrong.
    """
    if given is not None and not isinstance(given, Mapping):
        raise TypeError(
            f"`added_cond_kwargs` is a {type(given).__name__}; expected a dict of micro-conditioning values, e.g. "
            '{"scale": tensor}.'
        )
    given = dict(given or {})
    if any(key not in known for key in given):  # not issuperset, which torch 2.6 cannot compile
        raise ValueError(
            f"Unknown keys {sorted(set(given) - set(known))} in `added_cond_kwargs`; this model is conditioned on "
            f"{sorted(known) or 'nothing'}."
        )
    return {key: values_per_sample(value, key, batch, device) for key, value in given.items()}


def values_per_sample(values: Any, name: str, batch: int, device: torch.device) -> torch.Tensor:
    """Convert a number, a tensor or a list of numbers to a tensor `(batch,)` on a device.

    Raises:
        TypeError: it is none of these.
        ValueError: the number of entries is wrong, or a number is not finite.
    """
    if not isinstance(values, torch.Tensor):
        if isinstance(values, (bool, str, bytes)) or values is None:
            raise TypeError(f"`{name}` is {describe(values)}; expected a number or a tensor of numbers.")
        if isinstance(values, float) and not torch.compiler.is_compiling():
            check_number(values, f"`{name}`")
        try:
            values = torch.as_tensor(values)
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(
                f"`{name}` is {describe(values)} ({type(values).__name__}); expected a number or a tensor of numbers."
            ) from error
    if values.dtype == torch.bool or values.is_complex():
        raise TypeError(f"`{name}` holds {values.dtype}; expected numbers.")
    # Not every device supports float64; time and conditions are embedded in float32.
    values = values.float() if values.dtype == torch.float64 else values
    return expand_to_batch(values.to(device), batch, name)


def expand_to_batch(values: torch.Tensor, batch: int, name: str) -> torch.Tensor:
    """Expand a scalar, `(1,)` or `(batch,)` to `(batch,)`."""
    values = values.reshape(-1) if values.ndim == 0 else values
    # Compared one by one: with dynamic sizes, a compiled model does not find them in a tuple.
    if values.ndim != 1 or (values.shape[0] != 1 and values.shape[0] != batch):
        raise ValueError(
            f"`{name}` has shape {tuple(values.shape)}; expected one value for all, or one for each of the {batch} "
            f"samples of level 0."
        )
    return values.expand(batch)
