# SPDX-License-Identifier: Apache-2.0
"""Guided predictions of a step: the calls of the model, and plain guidance. For other methods see `method`."""

from __future__ import annotations

import contextlib
import itertools
import operator
import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from diffusers_mdm.pipelines.drawing.callbacks import may_change_inputs
from diffusers_mdm.pipelines.drawing.conditioning import MicroConditioning
from diffusers_mdm.pipelines.drawing.request import Request, Sample
from diffusers_mdm.pipelines.drawing.setup import Drawing, adapters_to_itself
from diffusers_mdm.pyramid import as_pyramid

# Samples times steps that are embedded at once.
_MOST_EMBEDDED = 64
# One drawing at a time: each looks before its first call of the model, so that none runs while weights are moved.
_LAYING_OUT = threading.Lock()
_LAID_OUT: weakref.WeakSet[Any] = weakref.WeakSet()  # models that `lay_out_for` has converted to channels_last


def plain(conditional: torch.Tensor, other: torch.Tensor, guidance_scale: float) -> torch.Tensor:
    """Apply classifier-free guidance: u + w (c - u) (Imagen, arXiv:2205.11487, equation 2).

    ml-mdm applies it to v at every level.

    Args:
        conditional: prediction c with the prompt, `(B, C, H, W)`.
        other: prediction u without the prompt, `(B, C, H, W)`.
        guidance_scale: w; 1 gives c.
    """
    return other + guidance_scale * (conditional - other)


def rescaled(guided: torch.Tensor, conditional: torch.Tensor, guidance_rescale: float) -> torch.Tensor:
    """Rescale a guided prediction towards the standard deviation of the conditional one (arXiv:2305.08891, section
    3.4).

    Args:
        guided: `(B, C, H, W)`, or with frames.
        conditional: the same shape.
        guidance_rescale: 0 to 1, how far each sample's standard deviation is moved.
    """
    if guidance_rescale == 0.0:
        return guided
    axes = tuple(range(1, guided.ndim))
    spread_back = guided * (conditional.std(dim=axes, keepdim=True) / guided.std(dim=axes, keepdim=True))
    return guidance_rescale * spread_back + (1.0 - guidance_rescale) * guided


def is_guided(guidance_scale: float | Sequence[float]) -> bool:
    """Return whether the model also runs without the prompt, which is so if the scale of any level is above 1."""
    return guidance_scale > 1.0 if isinstance(guidance_scale, (int, float)) else any(w > 1.0 for w in guidance_scale)


def needs_negatives(request: Request) -> bool:
    """Return whether a call must encode negative prompts or classes."""
    if request.guidance_unet is not None:
        return False
    has_own_scale = request.guidance is not None and request.guidance.has_own_scale
    return has_own_scale or is_guided(request.guidance_scale)


def level_scales(guidance_scale: float | Sequence[float], num_levels: int) -> list[float]:
    """Return the scale of every level, innermost first, from one for all levels or one per level."""
    if isinstance(guidance_scale, (int, float)):
        return [guidance_scale] * num_levels
    return list(guidance_scale[:num_levels])


def each_level(function: Callable[[torch.Tensor], torch.Tensor], sample: Sample) -> Sample:
    """Apply a function to every level of a pyramid, or to a bare tensor."""
    return function(sample) if isinstance(sample, torch.Tensor) else [function(level) for level in sample]


def predict(drawing: Drawing, latents: Sample, timestep: torch.Tensor, step: int = 0) -> Sample:
    """Predict all levels, with guidance if `guidance_scale` is above 1.

    Args:
        drawing: the drawing.
        latents: samples as scaled by the scheduler, B per level; these can be the inner levels alone.
        timestep: one t for the whole batch.
        step: number of steps before this one.
    """
    drawing.step = step
    scales = level_scales(drawing.controls.guidance_scale, len(as_pyramid(latents)[0]))
    rescale = drawing.controls.guidance_rescale
    if drawing.guidance is not None:
        steps = drawing.guidance.begin_step(drawing, latents, timestep, step, scales)
        conditional, other = _both(drawing, latents, timestep, guided=any(entry.needs_other for entry in steps))
        return drawing.guidance.combine(conditional, other, steps)
    conditional, other = _both(drawing, latents, timestep, guided=is_guided(scales))
    if other is None:
        return conditional
    conditionals, bare = as_pyramid(conditional)
    guided = [
        rescaled(plain(c, u, w), c, rescale) if is_guided(w) else c
        for c, u, w in zip(conditionals, as_pyramid(other)[0], scales, strict=True)
    ]
    return guided[0] if bare else guided


def _both(drawing: Drawing, latents: Sample, timestep: torch.Tensor, *, guided: bool) -> tuple[Sample, Sample | None]:
    """Return predictions with the prompt and, if guided, without it or of the weaker model."""
    unet, weaker = drawing.pipeline.unet, drawing.request.guidance_unet
    if guided and weaker is not None:
        conditional = _run(drawing, unet, latents, timestep, guided=False)
        return conditional, _run(drawing, weaker, latents, timestep, guided=False)
    prediction = _run(drawing, unet, latents, timestep, guided=guided)
    if not guided:
        return prediction, None
    return each_level(lambda level: level.chunk(2)[1], prediction), each_level(
        lambda level: level.chunk(2)[0], prediction
    )


def _run(drawing: Drawing, unet: Any, latents: Sample, timestep: torch.Tensor, *, guided: bool) -> Sample:
    """Return predictions of all samples of a batch; if guided, of twice as many, with the unconditional ones first."""
    groups, micro = drawing.groups, drawing.micro_conditioning
    if groups[0].samples is None:
        return _run_group(drawing, unet, latents, timestep, 0, micro, guided)
    halves = 2 if guided else 1
    predictions = each_level(lambda level: level.new_empty((halves * len(level), *level.shape[1:])), latents)
    for index, group in enumerate(groups):
        part = _run_group(
            drawing,
            unet,
            each_level(operator.itemgetter(group.samples), latents),
            timestep,
            index,
            {key: value[:, group.samples] for key, value in micro.items()},
            guided,
        )
        for whole, own in zip(as_pyramid(predictions)[0], as_pyramid(part)[0], strict=True):
            whole.unflatten(0, (halves, -1))[:, group.samples] = own.unflatten(0, (halves, -1))
    return predictions


def _run_group(
    drawing: Drawing,
    unet: Any,
    latents: Sample,
    timestep: torch.Tensor,
    group: int,
    micro_conditioning: MicroConditioning,
    guided: bool,
) -> Sample:
    """Return predictions of the samples of a batch in group number `group`, which go through the model together."""
    innermost = as_pyramid(latents)[0][0]
    dtype, sample_dtype = drawing.dtype_of(unet), innermost.dtype
    if drawing.beside is not None:
        samples = drawing.groups[group].samples
        beside = drawing.beside if samples is None else drawing.beside[samples]
        latents = each_level(lambda level: torch.cat([level, beside.to(level.dtype)], dim=1), latents)
    with adapters_to_itself(unet), _call_of(unet, drawing.step, group, guided=guided):
        inputs = _inputs(drawing, unet, group, micro_conditioning, guided=guided)
        prediction = unet(
            each_level(lambda level: (torch.cat([level, level]) if guided else level).to(dtype), latents),
            _embedded(
                drawing, unet, timestep, inputs, len(innermost) * (2 if guided else 1), is_clip=innermost.ndim > 4
            ),
            **inputs.arguments,
            return_dict=False,
        )[0]
    # Guidance multiplies rounding errors, so it is computed in the precision of the samples, not of the model.
    return each_level(lambda level: level.to(sample_dtype), prediction)


def _call_of(unet: Any, step: int, group: int, *, guided: bool) -> contextlib.AbstractContextManager[Any]:
    """For one call of a model that reuses something of earlier steps: which call it goes on from."""
    if getattr(unet, "inner_cache", None) is None:
        return contextlib.nullcontext()
    return unet.cache_context(f"group {group}, {'guided' if guided else 'alone'}", step_index=step)


@dataclass
class ModelInputs:
    """Inputs of a model that depend on the conditions and on the timestep, but not on the samples.

    Attributes:
        arguments: arguments of the model, the same at every step.
        can_embed: whether the model can embed several timesteps at once.
        timesteps: the timesteps to some of which `embeddings` belong.
        first: index of the timestep of the first of these.
        embeddings: results of the model's `embed_timesteps`, for steps that follow each other.
    """

    arguments: dict[str, Any]
    can_embed: bool
    timesteps: torch.Tensor | None = None
    first: int = 0
    embeddings: list[Any] = field(default_factory=list)


def _inputs(
    drawing: Drawing, unet: Any, group: int, micro_conditioning: MicroConditioning, *, guided: bool
) -> ModelInputs:
    """Return the model's inputs for a group, which are made at the first step.

    They include the keys and values of the text, which every attention layer would otherwise compute at every step.
    """
    adapters = drawing.controls.cross_attention_kwargs
    key = (unet is drawing.pipeline.unet, group, guided, (adapters or {}).get("scale"))
    if key not in drawing.model_inputs:
        weights_in_place = has_weights_in_place(unet)
        if weights_in_place:
            lay_out_for(unet, drawing.device)
        alike = drawing.groups[group]
        conditioning = drawing.conditioning if alike.samples is None else drawing.conditioning.select(alike)
        arguments = conditioning.model_inputs(guided=guided, has_pads=alike.has_pads, dtype=drawing.dtype_of(unet))
        if "encoder_hidden_states" in arguments and weights_in_place and hasattr(unet, "encode_text"):
            text, mask = arguments["encoder_hidden_states"], arguments.pop("encoder_attention_mask")
            encoded = unet.encode_text(text, mask, with_keys_values=True, cross_attention_kwargs=adapters)
            arguments["encoder_hidden_states"] = encoded
        micro = {name: value.flatten() if guided else value[1] for name, value in micro_conditioning.items()}
        arguments |= {"added_cond_kwargs": micro, "cross_attention_kwargs": adapters}
        is_constant = drawing.request.callback_on_step_end is None or not may_change_inputs(drawing)
        can_embed = weights_in_place and is_constant and hasattr(unet, "embed_timesteps")
        drawing.model_inputs[key] = ModelInputs(arguments, can_embed)
    return drawing.model_inputs[key]


def _embedded(
    drawing: Drawing, unet: Any, timestep: torch.Tensor, inputs: ModelInputs, batch_size: int, *, is_clip: bool
) -> Any:
    """Return the timestep as the model takes it: for small batches of images, embedded together with later ones.

    Layers that take embeddings spend most of their time reading weights, so many small batches take as long as one.
    """
    num_steps, position, timesteps = _MOST_EMBEDDED // batch_size, drawing.position, drawing.timesteps
    if position is None or num_steps < 2 or is_clip or not inputs.can_embed:
        return timestep.expand(batch_size)
    index = position - inputs.first
    if inputs.timesteps is not timesteps or not 0 <= index < len(inputs.embeddings):
        inputs.timesteps, inputs.first, index = timesteps, position, 0
        inputs.embeddings = unet.embed_timesteps(
            timesteps[position : position + num_steps], batch_size, **inputs.arguments
        )
    return inputs.embeddings[index]


def has_weights_in_place(unet: Any) -> bool:
    """Return whether the weights of a model are on the right device before its layers run.

    Offloading by layers, device maps and layerwise casting replace `forward` of the modules that they handle, whose
    weights have the right device and precision only while that runs.
    """
    return not any("forward" in vars(part) for part in itertools.islice(unet.modules(), 1, None))


def lay_out_for(unet: Any, device: torch.device) -> None:
    """Convert the weights of convolutions to the memory format that is fastest on a device, without changing a number.

    On CPUs this is channels_last, which feature maps then have, too. A model that was converted for a CPU is converted
    back before it runs on an accelerator, where group norms would copy every feature map. Other models keep the format
    that their owner chose (`unet.to(memory_format=...)`).

    Args:
        unet: the model, with its weights on any device: offloaded ones are moved when it runs.
        device: the device that it runs on.
    """
    with _LAYING_OUT:
        if device.type != "cpu":
            if unet in _LAID_OUT:
                unet.to(memory_format=torch.contiguous_format)
                _LAID_OUT.discard(unet)
            return
        kernels = (parameter for parameter in unet.parameters() if parameter.ndim == 4)
        if not all(kernel.is_contiguous(memory_format=torch.channels_last) for kernel in kernels):
            unet.to(memory_format=torch.channels_last)
            _LAID_OUT.add(unet)
