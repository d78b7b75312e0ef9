# SPDX-License-Identifier: Apache-2.0
"""What `NestedUNetModel.forward` takes, checked: the noisy pyramid, text, classes and values for each batch row; and
`TextConditioning`, what the model makes of a prompt without knowing the timestep.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any, cast

import torch

from ..checked_values import check_number, describe
from ..pyramid import Pyramid, check_pyramid, check_tensor
from .level_geometry import LevelGeometry


@dataclasses.dataclass
class TextConditioning:
    """A prompt as the levels see it.

    Args:
        hidden_states: `(B, L, D)`, projected text.
        pooled: `(B, T)`, the text vector that is added to every level's time embedding.
        attention_mask: `(B, L)` bool, True where attention may look; `None` for everywhere.
        keys_values: for each attention layer with text, in `modules()` order, its key and value `(B, L, heads, d)`;
            `None` to compute them at every call.
    """

    hidden_states: torch.Tensor
    pooled: torch.Tensor
    attention_mask: torch.Tensor | None = None
    keys_values: tuple[tuple[torch.Tensor, torch.Tensor], ...] | None = None

    def tensors(self) -> list[torch.Tensor | None]:
        """Every tensor, in an order from which `with_tensors` makes the same again."""
        flat = [part for pair in self.keys_values or () for part in pair]
        return [self.hidden_states, self.pooled, self.attention_mask, *flat]

    def with_tensors(self, tensors: Sequence[torch.Tensor | None]) -> TextConditioning:
        """The same with other tensors in the place of `tensors()`."""
        hidden_states, pooled, mask, *flat = tensors
        if hidden_states is None or pooled is None:
            raise ValueError("The states of the text and their mean are missing.")
        pairs = cast(list[torch.Tensor], flat)
        keys_values = None if self.keys_values is None else tuple(zip(pairs[::2], pairs[1::2], strict=True))
        return TextConditioning(hidden_states, pooled, mask, keys_values)

    def to(self, device: torch.device | str | int, non_blocking: bool = False) -> TextConditioning:
        """The same on another device; accelerate calls it where a level is elsewhere than the text."""
        return self.with_tensors(
            [None if tensor is None else tensor.to(device, non_blocking=non_blocking) for tensor in self.tensors()]
        )

    def first_rows(self, num_rows: int) -> TextConditioning:
        """The same for the first `num_rows` rows: outer levels may have a smaller batch."""
        if num_rows == self.hidden_states.shape[0]:
            return self
        return self.with_tensors([None if tensor is None else tensor[:num_rows] for tensor in self.tensors()])

    def row(self, index: int) -> TextConditioning:
        """The same for one batch row."""
        return self.with_tensors([None if tensor is None else tensor[index : index + 1] for tensor in self.tensors()])


def masked_mean(hidden_states: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Mean over the tokens that `mask` keeps; over all without one; zero where it keeps none.

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
    """Refuse what is no pyramid of the inner levels of a model.

    Args:
        pyramid: levels, innermost first, as they are to be run.
        geometry: of the model.
        in_channels: of the model.

    Raises:
        ValueError: number, size, frames or channels of the levels.
    """
    check_pyramid(pyramid)
    for index, level in enumerate(pyramid):
        check_tensor(level, f"sample[{index}]", "a noisy level", is_floating=True)
    num_levels, ratios = len(pyramid), geometry.ratios
    if num_levels > len(ratios):
        raise ValueError(
            f"`sample` has {num_levels} levels; the model has {len(ratios)}, whose sides are to each other as "
            f"{ratios} (innermost first)."
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
    """Refuse clips of another number of frames than the model's; single pictures go through every level that does not
    resample frames.
    """
    given = tuple(level.shape[2] if level.ndim == 5 else 1 for level in pyramid)
    takes_pictures = len(set(expected)) == 1
    if given == expected or (takes_pictures and set(given) == {1}):
        return
    also = ", or a single picture on each" if takes_pictures else ""
    raise ValueError(
        f"`sample` has {given} frames, innermost level first; this model takes {expected}{also}. Give clips as "
        "(batch, channels, frames, height, width), cut to that length."
    )


def check_text(config: Mapping[str, Any], states: torch.Tensor, mask: torch.Tensor | None) -> None:
    """Refuse text states `(B, L, D)` of another width and masks that are not `(B, L)`."""
    width = config["encoder_hid_dim"] or config["cross_attention_dim"]
    if width is None:
        raise ValueError("This model has no text (`cross_attention_dim` is None).")
    check_tensor(states, "encoder_hidden_states", f"a tensor (batch, tokens, {width}), or what `encode_text` returns")
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
    """Refuse text for a model that has none, a model of text without any, and what is neither states nor encoded."""
    if has_text != (text is not None):
        raise ValueError(
            "This model reads text: pass `encoder_hidden_states` (see MDMPipeline.encode_prompt)."
            if has_text
            else "This model has no text (`cross_attention_dim` is None), but `encoder_hidden_states` was passed."
        )
    if text is not None and not isinstance(text, TextConditioning):
        check_tensor(text, "encoder_hidden_states", "a tensor (batch, tokens, channels) or what `encode_text` returns")


def check_classes(labels: torch.Tensor | None, num_classes: int | None) -> None:
    """Refuse class labels `(B,)` for a model that has none, a model of classes without any, and labels it lacks."""
    if (num_classes is not None) != (labels is not None):
        raise ValueError(
            "This model is conditioned on classes: pass `class_labels` of shape (batch,)."
            if num_classes is not None
            else "`class_labels` was passed, but this model has no classes (`num_class_embeds` is None)."
        )
    if labels is None or num_classes is None:
        return
    check_tensor(labels, "class_labels", "a tensor (batch,)", is_floating=False)
    # Looking at values on an accelerator would make every step wait for it, and a graph cannot. Tensors of a class of
    # their own may have no values, such as those by which the memory of a training step is estimated.
    has_values = type(labels) is torch.Tensor and labels.device.type == "cpu" and labels.numel() > 0
    if has_values and not torch.compiler.is_compiling():
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= num_classes:
            raise ValueError(f"`class_labels` run from {low} to {high}; expected 0 to {num_classes - 1}.")


def micro_conditions(
    given: Mapping[str, Any] | None, known: Collection[str], batch: int, device: torch.device
) -> dict[str, torch.Tensor]:
    """The values of micro-conditions for each batch row, `(batch,)`.

    Raises:
        TypeError: `given` is no dict, or one of its values no number.
        ValueError: the model knows none of that name, or there are too many or too few values.
    """
    if given is not None and not isinstance(given, Mapping):
        raise TypeError(
            f"`added_cond_kwargs` is a {type(given).__name__}; expected a dict of micro-conditions, e.g. "
            '{"scale": tensor}.'
        )
    given = dict(given or {})
    if any(key not in known for key in given):  # not issuperset, which torch 2.6 cannot compile
        raise ValueError(
            f"Unknown keys {sorted(set(given) - set(known))} in `added_cond_kwargs`; this model is conditioned on "
            f"{sorted(known) or 'nothing'}."
        )
    return {key: as_row_values(value, key, batch, device) for key, value in given.items()}


def as_row_values(values: Any, name: str, batch: int, device: torch.device) -> torch.Tensor:
    """A number, a tensor or a list of numbers as a tensor `(batch,)` on a device.

    Raises:
        TypeError: it is none of these.
        ValueError: it has another number of entries, or a number is not finite.
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
    # Not every device knows float64; time and conditions are embedded in float32.
    values = values.float() if values.dtype == torch.float64 else values
    return expand_to_batch(values.to(device), batch, name)


def expand_to_batch(values: torch.Tensor, batch: int, name: str) -> torch.Tensor:
    """A scalar, `(1,)` or `(batch,)` as `(batch,)`."""
    values = values.reshape(-1) if values.ndim == 0 else values
    # Compared one by one: a compiled model with sizes that vary does not find them in a tuple.
    if values.ndim != 1 or (values.shape[0] != 1 and values.shape[0] != batch):
        raise ValueError(
            f"`{name}` has shape {tuple(values.shape)}; expected one value for all, or one for each of the {batch} "
            "batch rows of level 0."
        )
    return values.expand(batch)
