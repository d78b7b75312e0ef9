# SPDX-License-Identifier: Apache-2.0
"""Whole drawings equal those recorded from the published implementation, through the pipeline's own `__call__`."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from diffusers_mdm import MatryoshkaScheduler, MDMPipeline
from diffusers_mdm.conversion.apple_mdm import convert_apple_checkpoint

GOLDEN = Path(__file__).parents[1] / "fixtures" / "golden"
LOOPS = {loop["id"]: loop for loop in json.loads((GOLDEN / "sampler.json").read_text())["loops"]}
TENSORS = load_file(GOLDEN / "sampler_loops.safetensors")
# REFERENCE "Schedule / diffusion": how the published samplers bound the predicted image.
THRESHOLDS: dict[str, dict[str, Any]] = {
    "CLIP": {},
    "DYNAMIC_IF": {"thresholding": True, "dynamic_thresholding_ratio": 0.95, "sample_max_value": 1.5},
}
# Observed: at most 3.3e-5 (nested2_ddpm8), over all predictions on the way, samples and images.
TOLERANCE = 1e-4


class RecordedNoiseScheduler(MatryoshkaScheduler):
    """Injects the recorded noise, in its order, where another scheduler would draw."""

    recorded_noise: Iterator[list[torch.Tensor]] = iter(())

    def step(self, model_output: Any, timestep: Any, sample: Any, eta: float = 0.0) -> Any:
        noise = next(self.recorded_noise, [])
        variance_noise = noise[0] if len(noise) == 1 else noise or None
        return super().step(model_output, timestep, sample, eta, variance_noise=variance_noise)


def recorded(case: str, name: str) -> list[torch.Tensor]:
    """The levels of a recorded pyramid, innermost first (recorded with the highest resolution first)."""
    levels = [TENSORS[key].float() for key in sorted(TENSORS) if key.startswith(f"loop/{case}/{name}.")]
    return levels[::-1]


def text_of(case: str, guided: bool) -> dict[str, torch.Tensor]:
    """Recorded text features; with guidance the unconditional rows come first."""
    features, mask = TENSORS[f"loop/{case}/lm_outputs"], TENSORS[f"loop/{case}/lm_mask"]
    if not guided:
        return {"prompt_embeds": features, "prompt_attention_mask": mask}
    (negative, positive), (negative_mask, positive_mask) = features.chunk(2), mask.chunk(2)
    return {
        "prompt_embeds": positive,
        "prompt_attention_mask": positive_mask,
        "negative_prompt_embeds": negative,
        "negative_prompt_attention_mask": negative_mask,
    }


def pipeline_of(case: str) -> MDMPipeline:
    loop = LOOPS[case]
    folder = GOLDEN / loop["model"]
    unet = convert_apple_checkpoint(folder / "vis_model.pth", folder / "config.yaml").unet.eval()
    # Two of the three-level loops' models are configured for larger images than were drawn.
    unet.register_to_config(sample_size=recorded(case, "x_T")[0].shape[-1])
    scheduler = RecordedNoiseScheduler(
        base_sample_size=unet.config.sample_size,
        shift_power=loop["schedule_shifted_power"],
        **THRESHOLDS[loop["threshold"]],
    )
    steps = zip(*recorded(case, "noise"), strict=True) if loop["num_noise_steps"] else ()
    scheduler.recorded_noise = iter([list(levels) for levels in steps])
    pipe = MDMPipeline(text_encoder=None, tokenizer=None, unet=unet, scheduler=scheduler)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize("case", LOOPS)
def test_drawing_equals_the_recorded_one(case):
    loop = LOOPS[case]
    samples, previews = [], []

    def keep(pipeline: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        for kept, name in ((samples, "latents"), (previews, "pred_original_sample")):
            value = tensors[name]
            kept.append([value] if isinstance(value, torch.Tensor) else value)
        return {}

    scale = TENSORS.get(f"loop/{case}/scale")
    start = recorded(case, "x_T")
    pipe = pipeline_of(case)
    image = pipe(
        **text_of(case, guided=loop["guidance_scale"] > 1),
        num_inference_steps=loop["num_inference_steps"],
        guidance_scale=loop["guidance_scale"],
        eta=1.0 if loop["ddim_eta"] is None else loop["ddim_eta"],
        latents=start if len(start) > 1 else start[0],
        micro_conditioning=None if scale is None else {"scale": scale},
        output_type="pt",
        callback_on_step_end=keep,
        callback_on_step_end_tensor_inputs=["latents", "pred_original_sample"],
    ).images

    # The published time is one more than ours, and its last entry is the finished image.
    assert pipe.scheduler.timesteps.tolist() == [time - 1 for time in loop["timesteps"][:-1]]
    pairs = [(samples[0], recorded(case, "x_t_after_step0")), (samples[-1], recorded(case, "x_t_last"))]
    for index, step in enumerate(loop["x0_saved_steps"]):
        pairs.append((previews[step], [level[index] for level in recorded(case, "x0")]))
    pairs.append(([image * 2 - 1], [TENSORS[f"loop/{case}/final"]]))
    worst = max(
        (got - expected).abs().max().item()
        for ours, theirs in pairs
        for got, expected in zip(ours, theirs, strict=True)
    )
    print(f"{case}: {worst:.1e}")
    assert worst <= TOLERANCE
