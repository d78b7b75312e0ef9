# SPDX-License-Identifier: Apache-2.0
"""Calling the user's callback after each step, and applying the changes that it returns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from diffusers_mdm.checked_values import describe
from diffusers_mdm.pipelines.drawing import input_checks as checks
from diffusers_mdm.pipelines.drawing.conditioning import Conditioning, pad_to_length, take_features
from diffusers_mdm.pipelines.drawing.request import Sample, check_argument
from diffusers_mdm.pipelines.drawing.setup import Drawing
from diffusers_mdm.pyramid import as_pyramid

_TEXTS = ("prompt", "negative_prompt")
_LABELS = ("class_labels", "negative_class_labels")


def call_back(drawing: Drawing, step: int, timestep: torch.Tensor, latents: Sample, preview: Sample | None) -> Sample:
    """Call the callback with the tensors that it requested, and apply the tensors that it returns.

    Args:
        drawing: the drawing, whose conditioning may be changed.
        step: number of steps before this one.
        timestep: timestep of this step.
        latents: samples after this step.
        preview: the clean images predicted at this step.

    Returns:
        The samples after the callback.

    Raises:
        ValueError: the callback returned something other than tensors by name, or tensors that do not fit.
    """
    request, callback = drawing.request, drawing.request.callback_on_step_end
    if callback is None:
        return latents
    tensors = {"latents": latents, "pred_original_sample": preview, **drawing.conditioning._asdict()}
    asked = {name: tensors[name] for name in request.callback_on_step_end_tensor_inputs or ()}
    returned: Any = callback(drawing.pipeline, step, timestep, asked)
    if returned is None:  # it may still have changed the dict
        returned = asked
    known = drawing.pipeline._callback_tensor_inputs
    if not isinstance(returned, Mapping):
        raise ValueError(
            f"The callback of step {step} returned {describe(returned)}; expected a dict of tensors by name, such "
            f"as the one that it received, or None."
        )
    unknown = [name for name in returned if name not in known]
    if unknown:
        raise ValueError(f"The callback of step {step} returned {unknown}; expected only names in {list(known)}.")
    try:
        changed = {
            name: value
            for name, value in returned.items()
            if name in Conditioning._fields and value is not tensors[name] and not _is_cutoff(value, tensors[name])
        }
        # A mask may also have been changed in place.
        if changed or any(f"{name}_attention_mask" in asked for name in _TEXTS):
            drawing.condition_on(_changed_conditions(drawing, changed))
        if may_change_inputs(drawing):
            drawing.model_inputs.clear()
        return _checked_samples(returned.get("latents", latents), latents)
    except ValueError as error:
        raise ValueError(f"What the callback of step {step} returned does not fit the drawing: {error}") from error


def may_change_inputs(drawing: Drawing) -> bool:
    """Return whether a callback may change the conditions, or the model's adapters, between two steps.

    Features may be changed in place, and adapters through the pipeline.
    """
    asked = drawing.request.callback_on_step_end_tensor_inputs or ()
    has_adapters = bool(getattr(drawing.pipeline.unet, "peft_config", None))
    return has_adapters or any(name in Conditioning._fields for name in asked)


def _is_cutoff(returned: Any, given: Any) -> bool:
    """Return whether a callback returned the last entries of the tensor that it received, unchanged.

    diffusers' callbacks that turn guidance off select the conditional half in this way, because other pipelines keep
    the unconditional half before it in the same tensor. Here the two are separate, so nothing needs to be selected.
    """
    if not isinstance(returned, torch.Tensor) or not isinstance(given, torch.Tensor) or returned.ndim != given.ndim:
        return False
    last = given[len(given) - len(returned) :] if 0 < len(returned) < len(given) else given[:0]
    return len(last) > 0 and returned.shape == last.shape and returned.data_ptr() == last.data_ptr()


def _changed_conditions(drawing: Drawing, changed: dict[str, Any]) -> Conditioning:
    """Return the conditions with the changes of a callback, checked and converted to the form that the model takes."""
    conditioning = drawing.conditioning._replace(**changed)
    fields: dict[str, Any] = {}
    for name in _TEXTS:
        fields |= _checked_text(name, drawing, conditioning)
    for name in _LABELS:
        labels = getattr(conditioning, name)
        if name in changed and labels is not None:
            numbers = drawing.pipeline.classes.numbers(labels, name)
            if len(numbers) != drawing.request.num_images:
                raise ValueError(
                    f"`{name}` has {len(numbers)} labels for {drawing.request.num_images} images; return one for each."
                )
            fields[name] = torch.tensor(numbers, device=drawing.device)
    conditioning = conditioning._replace(**fields)
    embeds, negatives = conditioning.prompt_embeds, conditioning.negative_prompt_embeds
    if embeds is None or negatives is None or embeds.shape[1] == negatives.shape[1]:
        return conditioning
    length = max(embeds.shape[1], negatives.shape[1])
    embeds, mask = pad_to_length(embeds, fields["prompt_attention_mask"], length)
    negatives, negative_mask = pad_to_length(negatives, fields["negative_prompt_attention_mask"], length)
    return conditioning._replace(
        prompt_embeds=embeds,
        prompt_attention_mask=mask,
        negative_prompt_embeds=negatives,
        negative_prompt_attention_mask=negative_mask,
    )


def _checked_text(name: str, drawing: Drawing, conditioning: Conditioning) -> dict[str, torch.Tensor]:
    """Return features and mask of the prompts or negative prompts, zero at padding and on the device of the
    drawing.
    """
    embeds = check_argument(f"{name}_embeds", getattr(conditioning, f"{name}_embeds"))
    mask = check_argument(f"{name}_attention_mask", getattr(conditioning, f"{name}_attention_mask"))
    checks.check_prompt(name, None, embeds, mask)
    if embeds is None:
        return {}
    config, num_images = drawing.pipeline.unet.config, drawing.request.num_images
    checks.check_text_width(f"{name}_embeds", embeds, config.encoder_hid_dim or config.cross_attention_dim)
    if len(embeds) != num_images:
        raise ValueError(f"`{name}_embeds` has {len(embeds)} entries for {num_images} images; return one for each.")
    features, mask = take_features(embeds, mask, drawing.device)
    return {f"{name}_embeds": features, f"{name}_attention_mask": mask}


def _checked_samples(returned: Any, latents: Sample) -> Sample:
    """Return the samples from a callback with the form, dtype and device of those that it received."""
    if returned is latents:
        return latents
    levels, bare = as_pyramid(latents)
    others = as_pyramid(check_argument("latents", returned))[0] if returned is not None else []
    shapes, expected = [tuple(level.shape) for level in others], [tuple(level.shape) for level in levels]
    if shapes != expected:
        raise ValueError(f"`latents` has levels of shape {shapes}, innermost first; expected {expected}.")
    moved = [other.to(level) for other, level in zip(others, levels, strict=True)]
    return moved[0] if bare else moved
