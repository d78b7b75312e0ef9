# SPDX-License-Identifier: Apache-2.0
"""What the model predicts at a step, guided: the model's calls, and how their predictions are put together.

A new way of guiding is a function beside `guide`, and its place in `_predict_group`.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable
from typing import Any

import torch

from diffusers_mdm.pipelines.drawing.request import Sample
from diffusers_mdm.pipelines.drawing.setup import Drawing, MicroConditioning, adapters_to_itself
from diffusers_mdm.pyramid import as_pyramid


def guide(
    unconditional: torch.Tensor, conditional: torch.Tensor, guidance_scale: float, guidance_rescale: float = 0.0
) -> torch.Tensor:
    """Push a prediction away from the unconditional one: u + w (c - u) (Imagen, arXiv:2205.11487, equation 2; ml-mdm
    applies it to v at every level).

    Args:
        unconditional: prediction u without the prompt, `(B, C, H, W)`.
        conditional: prediction c with the prompt, `(B, C, H, W)`.
        guidance_scale: w; 1 gives c.
        guidance_rescale: 0 to 1, how far each sample's standard deviation is brought back to that of c
            (arXiv:2305.08891, section 3.4).
    """
    guided = unconditional + guidance_scale * (conditional - unconditional)
    if guidance_rescale == 0.0:
        return guided
    axes = tuple(range(1, guided.ndim))
    rescaled = guided * (conditional.std(dim=axes, keepdim=True) / guided.std(dim=axes, keepdim=True))
    return guidance_rescale * rescaled + (1.0 - guidance_rescale) * guided


def is_guided(guidance_scale: float) -> bool:
    """Whether the model also runs without the prompt: only a weight above 1 pushes away from what it predicts then."""
    return guidance_scale > 1.0


def each_level(function: Callable[[torch.Tensor], torch.Tensor], sample: Sample) -> Sample:
    """Apply a function to every level; a bare tensor stays bare."""
    return function(sample) if isinstance(sample, torch.Tensor) else [function(level) for level in sample]


def predict(drawing: Drawing, latents: Sample, timestep: torch.Tensor) -> Sample:
    """Predict every level at once, guided where `guidance_scale` is above 1.

    Args:
        drawing: says with which model, from what and how.
        latents: what the scheduler made of the samples, B a level.
        timestep: one t for the whole batch.
    """
    groups, micro = drawing.groups, drawing.micro_conditioning
    if groups[0].rows is None:
        return _predict_group(drawing, latents, timestep, 0, micro)
    predictions = each_level(torch.empty_like, latents)
    for index, group in enumerate(groups):
        part = _predict_group(
            drawing,
            each_level(operator.itemgetter(group.rows), latents),
            timestep,
            index,
            {key: value[:, group.rows] for key, value in micro.items()},
        )
        for whole, rows in zip(as_pyramid(predictions)[0], as_pyramid(part)[0], strict=True):
            whole[group.rows] = rows
    return predictions


def _predict_group(
    drawing: Drawing,
    latents: Sample,
    timestep: torch.Tensor,
    group: int,
    micro_conditioning: MicroConditioning,
) -> Sample:
    """Predict for those pictures of a batch that may go through the model together: group number `group`."""
    unet, controls = drawing.pipeline.unet, drawing.controls
    guided = is_guided(controls.guidance_scale)
    innermost = as_pyramid(latents)[0][0]
    dtype, sample_dtype = unet.dtype, innermost.dtype
    with adapters_to_itself(unet):
        prediction = unet(
            each_level(lambda level: (torch.cat([level, level]) if guided else level).to(dtype), latents),
            timestep.expand(2 * len(innermost) if guided else len(innermost)),
            **_conditions(drawing, group, guided=guided),
            added_cond_kwargs={
                key: value.flatten() if guided else value[1] for key, value in micro_conditioning.items()
            },
            cross_attention_kwargs=controls.cross_attention_kwargs,
            return_dict=False,
        )[0]
    # Guidance multiplies rounding errors: it is done in the precision of the samples, not of the model.
    prediction = each_level(lambda level: level.to(sample_dtype), prediction)
    if not guided:
        return prediction
    w, rescale = controls.guidance_scale, controls.guidance_rescale
    return each_level(lambda level: guide(level.chunk(2)[0], level.chunk(2)[1], w, rescale), prediction)


def _conditions(drawing: Drawing, group: int, *, guided: bool) -> dict[str, Any]:
    """What the model is given of the conditions of a group: the same at every step, so it is made once.

    That holds for the keys and values of the text, too, which every attention layer would otherwise project anew.
    """
    unet, adapters = drawing.pipeline.unet, drawing.controls.cross_attention_kwargs
    key = (group, guided, (adapters or {}).get("scale"))
    if key not in drawing.model_inputs:
        rows = drawing.groups[group]
        conditioning = drawing.conditioning if rows.rows is None else drawing.conditioning.select(rows)
        inputs = conditioning.model_inputs(guided=guided, has_pads=rows.has_pads, dtype=unet.dtype)
        if "encoder_hidden_states" in inputs and encodes_text_ahead(unet):
            text, mask = inputs["encoder_hidden_states"], inputs.pop("encoder_attention_mask")
            encoded = unet.encode_text(text, mask, with_keys_values=True, cross_attention_kwargs=adapters)
            inputs["encoder_hidden_states"] = encoded
        drawing.model_inputs[key] = inputs
    return drawing.model_inputs[key]


def encodes_text_ahead(unet: Any) -> bool:
    """Whether a model can make keys and values of a text before its layers run.

    Offloading by layers, device maps and layerwise casting put another `forward` into each part that they serve: its
    weights are where they belong only while that runs.
    """
    return hasattr(unet, "encode_text") and not any(
        "forward" in vars(part) for part in itertools.islice(unet.modules(), 1, None)
    )
