# SPDX-License-Identifier: Apache-2.0
"""What the pipelines refuse, each time with what was wrong, what was expected and what to do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

OUTPUT_TYPES = ("pil", "np", "pt", "latent")
Prompt = str | list[str] | None
Shape = tuple[int, ...]


def check_prompt(name: str, prompt: Prompt, embeds: torch.Tensor | None, mask: torch.Tensor | None) -> None:
    """Refuse a prompt that is no text, or is given twice, and embeddings or masks of the wrong shape.

    Args:
        name: "prompt" or "negative_prompt".
        prompt: a text or a list of texts.
        embeds: `(B, L, width)` in place of the prompt.
        mask: `(B, L)`, True where there is a token.
    """
    if prompt is not None and embeds is not None:
        raise ValueError(f"Both `{name}` and `{name}_embeds` were given; pass only one of them.")
    if prompt is not None and not isinstance(prompt, (str, list)):
        raise ValueError(f"`{name}` has to be a `str` or a `list` of them, but is {type(prompt).__name__}.")
    if isinstance(prompt, list):
        if not prompt:
            raise ValueError(f"`{name}` is an empty list; pass at least one text.")
        wrong = [type(text).__name__ for text in prompt if not isinstance(text, str)]
        if wrong:
            raise ValueError(f"`{name}` has to be a list of `str`, but has entries of type {', '.join(wrong)}.")
    if embeds is not None and (embeds.ndim != 3 or 0 in embeds.shape):
        raise ValueError(
            f"`{name}_embeds` has shape {tuple(embeds.shape)}; expected (batch, tokens, width), none of them 0."
        )
    if mask is None:
        return
    if embeds is None:
        raise ValueError(
            f"`{name}_attention_mask` was given without `{name}_embeds`. The mask of a text is made by its tokenizer; "
            "pass both or neither."
        )
    if mask.shape != embeds.shape[:2]:
        raise ValueError(
            f"`{name}_attention_mask` has shape {tuple(mask.shape)} but `{name}_embeds` has {tuple(embeds.shape)}; "
            f"expected a mask of shape {tuple(embeds.shape[:2])}, one entry a token."
        )
    if not mask.bool().any(dim=1).all():
        raise ValueError(f"`{name}_attention_mask` masks every token of a row; leave at least one token in each row.")


def check_prompt_pair(
    prompt: Prompt, negative_prompt: Prompt, embeds: torch.Tensor | None, negative_embeds: torch.Tensor | None
) -> None:
    """Refuse prompts and negative prompts that do not belong together.

    Raises:
        TypeError: one is a text and the other a list.
        ValueError: there is no prompt, or the batches differ.
    """
    if prompt is None and embeds is None:
        raise ValueError("Neither `prompt` nor `prompt_embeds` was given; pass one of them.")
    if prompt is not None and negative_prompt is not None and type(prompt) is not type(negative_prompt):
        raise TypeError(
            "`negative_prompt` should be the same type as `prompt`, but got "
            f"{type(negative_prompt).__name__} != {type(prompt).__name__}."
        )
    if embeds is not None and negative_embeds is not None and embeds.shape != negative_embeds.shape:
        raise ValueError(
            "`prompt_embeds` and `negative_prompt_embeds` must have the same shape when both are given, but got "
            f"{tuple(embeds.shape)} != {tuple(negative_embeds.shape)}."
        )
    num_prompts, num_negatives = _num_rows(prompt, embeds), _num_rows(negative_prompt, negative_embeds)
    one_for_all = (negative_prompt is None and negative_embeds is None) or isinstance(negative_prompt, str)
    if not one_for_all and num_negatives != num_prompts:
        raise ValueError(
            f"Got {num_negatives} negative prompts for {num_prompts} prompts; pass one for each prompt, or none."
        )


def _num_rows(prompt: Prompt, embeds: torch.Tensor | None) -> int:
    if embeds is not None:
        return embeds.shape[0]
    return len(prompt) if isinstance(prompt, list) else 1


def check_reads_text(config: Any) -> None:
    """Refuse a model that does not draw from texts alone.

    Args:
        config: of the model.
    """
    if config.cross_attention_dim is None:
        raise ValueError(
            "This model reads no text (`cross_attention_dim` is None), so there is no prompt that it could draw; "
            "draw the classes of a class-conditional model with MDMClassConditionalPipeline."
        )
    if config.num_class_embeds is not None:
        raise ValueError(
            f"This model is conditioned on {config.num_class_embeds} classes besides its text, and this pipeline "
            "takes no `class_labels`."
        )


def check_text_width(name: str, embeds: torch.Tensor | None, width: int | None) -> None:
    """Refuse embeddings of another text encoder than the model was made for."""
    if embeds is not None and width is not None and embeds.shape[-1] != width:
        raise ValueError(
            f"`{name}` has width {embeds.shape[-1]}, but the model expects text features of width {width}; use the "
            "text encoder that the model was trained with."
        )


def check_size(height: int, width: int, sides: Sequence[int], multiples: Sequence[int]) -> None:
    """Refuse a size that no doll has.

    Args:
        height: pixels.
        width: pixels.
        sides: side of every doll, innermost first; the larger of height and width has to be one of them.
        multiples: for every doll, what height and width must be multiples of.
    """
    if max(height, width) not in sides:
        raise ValueError(
            f"No doll of this model draws {height} x {width} pixels (height x width): the larger side has to be one "
            f"of {', '.join(map(str, sides))}, the sizes of its dolls, innermost first."
        )
    multiple = multiples[list(sides).index(max(height, width))]
    if height <= 0 or width <= 0 or height % multiple or width % multiple:
        raise ValueError(
            f"`height` and `width` have to be positive multiples of {multiple} for pictures whose larger side is "
            f"{max(height, width)} (resolution between the levels times downsampling within the innermost one), "
            f"but are {height} and {width}."
        )


def check_picture_size(name: str, height: int, width: int, sides: Sequence[int], multiples: Sequence[int]) -> None:
    """Refuse given pictures whose size no doll has.

    Args:
        name: what the error message calls the pictures.
        height: pixels.
        width: pixels.
        sides: side of every doll, innermost first.
        multiples: for every doll, what height and width must be multiples of.
    """
    if max(height, width) not in sides:
        raise ValueError(
            f"`{name}` is {height} x {width} pixels (height x width), the size of no doll: the larger side has to be "
            f"one of {', '.join(map(str, sides))}, the sizes of this model's dolls, innermost first. Resize it first."
        )
    multiple = multiples[list(sides).index(max(height, width))]
    if height % multiple or width % multiple:
        raise ValueError(
            f"`{name}` is {height} x {width} pixels (height x width); both have to be multiples of {multiple} for "
            f"pictures whose larger side is {max(height, width)}. Crop or resize it first."
        )


def check_mask_size(masks: torch.Tensor, height: int, width: int) -> None:
    """Refuse masks `(B, 1, H, W)` of another size than the pictures."""
    if masks.shape[-2:] != (height, width):
        got_height, got_width = masks.shape[-2:]
        raise ValueError(
            f"`mask_image` is {got_height} x {got_width} pixels (height x width), but `image` is {height} x {width}; "
            "pass a mask of the size of the pictures."
        )


def check_resampling(num_resampling_steps: int, jump_length: int, scheduler: Any) -> None:
    """Refuse counts below 1, and resampling with a scheduler that cannot say how noisy its samples are.

    Args:
        num_resampling_steps: see `resampled_positions`.
        jump_length: see `resampled_positions`.
        scheduler: of the pipeline.
    """
    check_count("num_resampling_steps", num_resampling_steps)
    check_count("jump_length", jump_length)
    if num_resampling_steps > 1 and not hasattr(scheduler, "level_alphas_cumprod"):
        raise ValueError(
            f"`num_resampling_steps` is {num_resampling_steps}, but {type(scheduler).__name__} cannot go back to more "
            "noise; use MatryoshkaScheduler, or `num_resampling_steps=1`."
        )


def check_strength(strength: float) -> None:
    """Refuse a strength outside [0, 1]."""
    if not 0 <= strength <= 1:
        raise ValueError(
            f"`strength` is {strength}; expected 0 (the picture as it is) to 1 (nothing but its trace is left)."
        )


def check_draws_pictures(level_frames: Sequence[int]) -> None:
    """Refuse to draw pictures with levels that have different numbers of frames.

    Args:
        level_frames: frames of the levels that would be opened, innermost first.
    """
    if len(set(level_frames)) > 1:
        raise ValueError(
            f"This is a model of clips, whose levels have {', '.join(map(str, level_frames))} frames (innermost "
            "first): pictures cannot go through levels that resample frames. Draw clips with MDMVideoPipeline, or a "
            "smaller picture, which opens fewer levels."
        )


def check_latents(latents: torch.Tensor | Sequence[torch.Tensor], shapes: Sequence[Shape]) -> None:
    """Refuse starting noise with another number of levels, or of other shapes, than will be drawn.

    Args:
        latents: a pyramid, innermost first, or a bare tensor where one doll is opened.
        shapes: the expected `(B, C, H, W)` or `(B, C, F, H, W)` of every level.
    """
    given = [latents] if isinstance(latents, torch.Tensor) else list(latents)
    got = [tuple(level.shape) if isinstance(level, torch.Tensor) else type(level).__name__ for level in given]
    if got != [tuple(shape) for shape in shapes]:
        raise ValueError(
            f"`latents` has {len(got)} level(s) of shape {got}; expected {len(shapes)} level(s), innermost first, of "
            f"shape {[tuple(shape) for shape in shapes]}. Choose the dolls to open with `height` and `width`."
        )


def check_generator(generator: torch.Generator | list[torch.Generator] | None, num_images: int) -> None:
    """Refuse a list of generators that does not have one entry a picture."""
    if isinstance(generator, list) and len(generator) != num_images:
        raise ValueError(
            f"Got a list of {len(generator)} generators for {num_images} pictures (prompts times "
            "`num_images_per_prompt`); pass one generator a picture, or a single one."
        )


def check_micro_conditioning(
    micro_conditioning: Mapping[str, Any] | None, known_keys: Sequence[Sequence[str]], num_images: int
) -> None:
    """Refuse micro-conditions that the model does not know, or whose number fits no batch.

    Args:
        micro_conditioning: name to a number, one number a picture, or two (unconditional rows first).
        known_keys: the names that each level of the model knows.
        num_images: B.
    """
    known = sorted({key for keys in known_keys for key in keys})
    for key, value in (micro_conditioning or {}).items():
        if key not in known:
            raise ValueError(f"The model has no micro-condition {key!r}; it has {', '.join(known) or 'none'}.")
        numbers = torch.as_tensor(value)
        if numbers.ndim > 1 or (numbers.ndim == 1 and len(numbers) not in (num_images, 2 * num_images)):
            raise ValueError(
                f"micro_conditioning[{key!r}] has shape {tuple(numbers.shape)}; pass one number, {num_images} (one a "
                f"picture) or {2 * num_images} (those of the unconditional rows first)."
            )


def check_choices(
    output_type: str, callback_inputs: Sequence[str] | None, known_callback_inputs: Sequence[str]
) -> None:
    """Refuse unknown output types, and tensors that a callback cannot be given."""
    if output_type not in OUTPUT_TYPES:
        raise ValueError(f"`output_type` {output_type!r} is unknown; use one of {', '.join(OUTPUT_TYPES)}.")
    unknown = [name for name in callback_inputs or () if name not in known_callback_inputs]
    if unknown:
        raise ValueError(
            f"`callback_on_step_end_tensor_inputs` has to be in {list(known_callback_inputs)}, but found {unknown}."
        )


def check_count(name: str, value: int) -> None:
    """Refuse counts that are not whole numbers above 0."""
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"`{name}` has to be a whole number of at least 1, but is {value!r}.")
