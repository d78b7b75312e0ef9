# SPDX-License-Identifier: Apache-2.0
"""Checks that arguments of the right type fit together and fit the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from diffusers_mdm.checked_values import describe, is_number
from diffusers_mdm.pipelines.drawing.other_schedulers import check_other_scheduler
from diffusers_mdm.pipelines.drawing.request import MAX_IMAGES, Prompt, Request
from diffusers_mdm.pipelines.drawing.setup import level_shapes
from diffusers_mdm.pyramid import Size, level_of_size

Shape = tuple[int, ...]


def check_prompt(name: str, prompt: Prompt, embeds: torch.Tensor | None, mask: torch.Tensor | None) -> None:
    """Check that a prompt is text and not given twice, and the shapes of embeddings and masks.

    Args:
        name: "prompt" or "negative_prompt".
        prompt: a text or a list of texts.
        embeds: `(B, L, width)`, instead of the prompt.
        mask: `(B, L)`, True for tokens.
    """
    if prompt is not None and embeds is not None:
        raise ValueError(f"Both `{name}` and `{name}_embeds` were given; pass only one of them.")
    if prompt is not None and not isinstance(prompt, (str, list)):
        raise ValueError(f"`{name}` has to be a `str` or a `list` of them, but is {describe(prompt)}.")
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
            f"`{name}_attention_mask` was given without `{name}_embeds`. For a text, the tokenizer makes the mask; "
            f"pass both or neither."
        )
    if mask.shape != embeds.shape[:2]:
        raise ValueError(
            f"`{name}_attention_mask` has shape {tuple(mask.shape)} but `{name}_embeds` has {tuple(embeds.shape)}; "
            f"expected a mask of shape {tuple(embeds.shape[:2])}, one entry per token."
        )
    if not mask.bool().any(dim=1).all():
        raise ValueError(
            f"`{name}_attention_mask` masks every token of a prompt; keep at least one token of each prompt."
        )


def check_prompt_pair(request: Request) -> None:
    """Check that prompts and negative prompts belong together.

    Raises:
        TypeError: one is a text and the other a list.
        ValueError: there is no prompt, or the batches differ.
    """
    prompt, negative_prompt = request.prompt, request.negative_prompt
    embeds, negative_embeds = request.prompt_embeds, request.negative_prompt_embeds
    if prompt is None and embeds is None:
        raise ValueError("Neither `prompt` nor `prompt_embeds` was given; pass one of them.")
    if (
        prompt is not None
        and negative_prompt is not None
        and isinstance(prompt, str) != isinstance(negative_prompt, str)
    ):
        raise TypeError(
            "`negative_prompt` should be the same type as `prompt`, but got "
            f"{type(negative_prompt).__name__} != {type(prompt).__name__}."
        )
    if embeds is not None and negative_embeds is not None and embeds.shape != negative_embeds.shape:
        raise ValueError(
            "`prompt_embeds` and `negative_prompt_embeds` must have the same shape when both are given, but got "
            f"{tuple(embeds.shape)} != {tuple(negative_embeds.shape)}."
        )
    if negative_embeds is not None:
        num_negatives = len(negative_embeds)
    else:
        num_negatives = len(negative_prompt) if isinstance(negative_prompt, list) else 1
    one_for_all = negative_embeds is None and not isinstance(negative_prompt, list)
    if not one_for_all and num_negatives != request.num_prompts:
        raise ValueError(
            f"Got {num_negatives} negative prompts for {request.num_prompts} prompts; pass one for each prompt, or "
            "none."
        )


def check_texts(request: Request, text_width: int | None) -> None:
    """Check prompts, negative prompts, and the width of embeddings; labels are not checked.

    Args:
        request: the request.
        text_width: width of the features that the model takes, None for any.
    """
    embeds, negative_embeds = request.prompt_embeds, request.negative_prompt_embeds
    check_prompt("prompt", request.prompt, embeds, request.prompt_attention_mask)
    negative_mask = request.negative_prompt_attention_mask
    check_prompt("negative_prompt", request.negative_prompt, negative_embeds, negative_mask)
    check_prompt_pair(request)
    check_text_width("prompt_embeds", embeds, text_width)
    check_text_width("negative_prompt_embeds", negative_embeds, text_width)


def has_conditions(config: Any) -> bool:
    """Return whether the model with this config is conditioned on text or classes."""
    return config.cross_attention_dim is not None or config.num_class_embeds is not None


def check_reads_text(config: Any) -> None:
    """Check that a model is conditioned on text only.

    Args:
        config: config of the model.
    """
    if config.cross_attention_dim is None:
        raise ValueError(
            "This model takes no text (`cross_attention_dim` is None), so it cannot be used with prompts; use "
            "MDMClassConditionalPipeline for a class-conditional model, and MDMUnconditionalPipeline for one without "
            "classes."
        )
    if config.num_class_embeds is not None:
        raise ValueError(
            f"This model is conditioned on {config.num_class_embeds} classes in addition to text, but this "
            f"pipeline takes no `class_labels`."
        )


def check_text_width(name: str, embeds: torch.Tensor | None, width: int | None) -> None:
    """Check that embeddings have the width that the model takes."""
    if embeds is not None and width is not None and embeds.shape[-1] != width:
        raise ValueError(
            f"`{name}` has width {embeds.shape[-1]}, but the model expects text features of width {width}; use the "
            "text encoder that the model was trained with."
        )


def check_batch(counts: Mapping[str, int], request: Request) -> int:
    """Return the number of images of a call, in which each input has one entry for all images, or one per image.

    Args:
        counts: number of entries of each input, by its name in error messages.
        request: has the number of images per entry.

    Raises:
        ValueError: two inputs have different numbers of entries, neither of them 1; or there are too many images.
    """
    size = max(counts.values(), default=1)
    if any(count not in (1, size) for count in counts.values()):
        listed = ", ".join(f"{count} in `{name}`" for name, count in counts.items())
        raise ValueError(
            f"The inputs do not make one batch: {listed}. Pass one entry for all, or equally many of each."
        )
    if size * request.copies > MAX_IMAGES:
        raise ValueError(
            f"{size} entries with `{request.copies_name}={request.copies}` are more than the {MAX_IMAGES} images "
            f"that one call can generate; use several calls."
        )
    return size * request.copies


def check_batch_and_size(pipeline: Any, request: Request, counts: Mapping[str, int]) -> int:
    """Check that inputs form one batch, and arguments that depend on the number or size of its images.

    Args:
        pipeline: the pipeline, whose model determines the sizes.
        request: receives the number of images.
        counts: numbers of prompts and labels.

    Returns:
        The number of levels to generate.
    """
    images, masks = request.images, request.masks
    given = {} if images is None else {"image": len(images.tensor)}
    given |= {} if masks is None else {"mask_image": len(masks)}
    request.num_images = check_batch({**counts, **given}, request)
    unet, sides, buckets = pipeline.unet, pipeline.image_sides, pipeline.aspect_ratio_buckets
    check_size(request.height, request.width, sides, pipeline.image_multiples, buckets)
    size = (request.num_images, request.height, request.width, request.num_frames)
    shapes = level_shapes(unet, pipeline.vae, *size, buckets)
    if request.num_frames is None:
        check_draws_images(unet.level_frames[: len(shapes)])
    check_scheduler(pipeline.scheduler, len(shapes), sides, request)
    if request.latents is not None:
        check_latents(request.latents, shapes)
    check_generator(request.generator, request.num_images)
    check_micro_conditioning(request.micro_conditioning, unet.config.micro_conditioning_keys, request.num_images)
    check_numbers_of_levels(request, len(shapes))
    return len(shapes)


def check_numbers_of_levels(request: Request, num_levels: int) -> None:
    """Check that lists have a number for every level to generate; numbers for other levels are ignored.

    Args:
        request: the request.
        num_levels: number of levels to generate.
    """
    for name, needed, which in (
        ("guidance_scale", num_levels, "each generated level"),
        ("level_agreement", num_levels - 1, "each generated level but the innermost"),
    ):
        value = getattr(request, name)
        if isinstance(value, list) and len(value) < needed:
            raise ValueError(
                f"`{name}` has {len(value)} numbers, but {num_levels} levels are generated; pass one number for "
                f"all, or {needed}, one for {which}, innermost first."
            )


def check_size(
    height: int, width: int, sides: Sequence[int], multiples: Sequence[int], buckets: Sequence[Size] = ()
) -> None:
    """Check that a size is that of a level.

    Args:
        height: pixels.
        width: pixels.
        sides: side of every level, innermost first; the larger of height and width has to be one of them.
        multiples: for every level, the number of which height and width must be multiples.
        buckets: further sizes; see `level_of_size`.
    """
    level = level_of_size(height, width, sides, buckets)
    if level is None:
        listed = ", ".join(f"{high} x {wide}" for high, wide in buckets)
        further = f", or the size one of {listed}, for smaller levels in proportion" if buckets else ""
        raise ValueError(
            f"No level of this model has {height} x {width} pixels (height x width): the larger side has to be one "
            f"of {', '.join(map(str, sides))}, the sizes of its levels, innermost first{further}."
        )
    multiple = multiples[level]
    if height <= 0 or width <= 0 or height % multiple or width % multiple:
        raise ValueError(
            f"`height` and `width` have to be positive multiples of {multiple} for images whose larger side is "
            f"{max(height, width)} (resolution between the levels times downsampling within the innermost one), "
            f"but are {height} and {width}."
        )


def check_draws_images(level_frames: Sequence[int]) -> None:
    """Check that levels have equal numbers of frames, so that they can generate single images.

    Args:
        level_frames: frames of the levels to generate, innermost first.
    """
    if len(set(level_frames)) > 1:
        raise ValueError(
            f"This is a video model, whose levels have {', '.join(map(str, level_frames))} frames (innermost "
            f"first): single images cannot go through levels that resample frames. Generate clips with "
            f"MDMVideoPipeline, or a smaller image, which needs fewer levels."
        )


def check_latents(latents: torch.Tensor | Sequence[torch.Tensor], shapes: Sequence[Shape]) -> None:
    """Check the number of levels and the shapes of starting noise.

    Args:
        latents: a pyramid, innermost first, or a bare tensor for a single level.
        shapes: the expected `(B, C, H, W)` or `(B, C, F, H, W)` of every level.
    """
    given = [latents] if isinstance(latents, torch.Tensor) else list(latents)
    got = [tuple(level.shape) for level in given]
    if got != [tuple(shape) for shape in shapes]:
        raise ValueError(
            f"`latents` has {len(got)} level(s) of shape {got}; expected {len(shapes)} level(s), innermost first, of "
            f"shape {[tuple(shape) for shape in shapes]}. Select the levels to generate with `height` and `width`."
        )


def check_generator(generator: torch.Generator | list[torch.Generator] | None, num_images: int) -> None:
    """Check that a list of generators has one entry per image."""
    if isinstance(generator, list) and len(generator) != num_images:
        raise ValueError(
            f"Got a list of {len(generator)} generators for {num_images} images; pass one generator per image, or a "
            "single one."
        )


def check_micro_conditioning(
    micro_conditioning: Mapping[str, Any] | None, known_keys: Sequence[Sequence[str]], num_images: int
) -> None:
    """Check that micro-conditioning has known names and a valid number of finite values.

    Args:
        micro_conditioning: maps names to a number, one number per image, or two per image (unconditional ones first).
        known_keys: the micro-conditioning keys of each level of the model.
        num_images: B.
    """
    known = sorted({key for keys in known_keys for key in keys})
    for key, value in (micro_conditioning or {}).items():
        if key not in known:
            raise ValueError(f"The model has no micro-condition {key!r}; it has {', '.join(known) or 'none'}.")
        entries = value.tolist() if hasattr(value, "tolist") else value
        entries = list(entries) if isinstance(entries, (list, tuple)) else [entries]
        if not all(is_number(entry) for entry in entries):
            raise ValueError(
                f"micro_conditioning[{key!r}] has to be a finite number or a flat list of them, but is "
                f"{describe(value)}."
            )
        if len(entries) not in (1, num_images, 2 * num_images):
            raise ValueError(
                f"micro_conditioning[{key!r}] has {len(entries)} numbers; pass one number, {num_images} (one per "
                f"image) or {2 * num_images} (those of the unconditional half of the batch first)."
            )


def check_shows_images(num_channels: int, output_type: str) -> None:
    """Check that the model's output can be converted to PIL images if there is no autoencoder.

    Args:
        num_channels: output channels of the model.
        output_type: output type of the call.
    """
    if output_type == "pil" and num_channels not in (1, 3):
        raise ValueError(
            f"The model has {num_channels} output channels, which are not an image, and this pipeline has no `vae` to "
            "decode them: load it with its autoencoder (`vae=...`), or use "
            '`output_type="latent"`, "np" or "pt".'
        )


def check_callback_names(names: Sequence[str] | None, known: Sequence[str]) -> None:
    """Check the names of tensors that a callback requests."""
    unknown = [name for name in names or () if name not in known]
    if unknown:
        raise ValueError(f"`callback_on_step_end_tensor_inputs` has to be in {list(known)}, but found {unknown}.")


def check_scheduler(scheduler: Any, num_levels: int, sides: Sequence[int], request: Request) -> None:
    """Check, before the first step, that the scheduler supports the request.

    Args:
        scheduler: scheduler of the pipeline.
        num_levels: number of levels to generate.
        sides: sides of all levels, innermost first.
        request: the request.
    """
    # Ours takes a pyramid, and supports everything; all others take a tensor.
    if not hasattr(scheduler, "level_alphas_cumprod"):
        check_other_scheduler(scheduler, num_levels, sides, request)
