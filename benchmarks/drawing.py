# SPDX-License-Identifier: Apache-2.0
"""Time a guided drawing against the published sampler and U-Net in plain form: same steps, same pictures."""

from __future__ import annotations

import argparse
from typing import Any

import torch
from machine import clock_of, describe_machine
from measuring import ROOT, ratio_of_medians, time_by_turns
from plain_unet import PlainUNet
from results_table import report, spelled, summary

from diffusers_mdm import MDMPipeline
from diffusers_mdm.demo import DEFAULT_PROMPTS, load_pipeline


@torch.no_grad()
def draw_plainly(
    pipeline: MDMPipeline, plain: PlainUNet, prompts: list[str], num_steps: int, guidance_scale: float
) -> list[torch.Tensor]:
    """Pictures of every level in [0, 1], by DDIM with eta 0 as the formulas have it (ml-mdm, Sampling)."""
    features, negatives, mask, negative_mask = pipeline.encode_prompt(prompts)
    text, text_mask = torch.cat([negatives, features]), torch.cat([negative_mask, mask])
    scheduler, sides = pipeline.scheduler, pipeline.unet.sample_sizes
    scheduler.set_timesteps(num_steps)
    generators = seeds(len(prompts))
    sample = [
        torch.cat([torch.randn(1, 3, side, side, generator=generator) for generator in generators]) for side in sides
    ]
    timesteps = scheduler.timesteps.tolist()
    for timestep, later in zip(timesteps, [*timesteps[1:], None], strict=True):
        doubled = [torch.cat([level, level]) for level in sample]
        predictions = plain(doubled, torch.full((len(text),), timestep), text, text_mask)
        for index, (level, prediction, side) in enumerate(zip(sample, predictions, sides, strict=True)):
            without, with_prompt = prediction.chunk(2)
            v = without + guidance_scale * (with_prompt - without)
            ratio = side / sides[0]
            g = scheduler.alpha_cumprod(torch.tensor(timestep), ratio)
            g_s = torch.tensor(1.0) if later is None else scheduler.alpha_cumprod(torch.tensor(later), ratio)
            clean = (g.sqrt() * level - (1 - g).sqrt() * v).clamp(-1, 1)
            noise = (level - g.sqrt() * clean) / (1 - g).sqrt()
            sample[index] = g_s.sqrt() * clean + (1 - g_s).sqrt() * noise
    return [(level.clamp(-1, 1) + 1) / 2 for level in sample]


def draw(pipeline: MDMPipeline, prompts: list[str], num_steps: int, guidance_scale: float) -> list[torch.Tensor]:
    """The same by the pipeline."""
    return pipeline(
        prompts,
        num_inference_steps=num_steps,
        guidance_scale=guidance_scale,
        generator=seeds(len(prompts)),
        output_type="pt",
        output_pyramid=True,
        return_dict=False,
    )[1]


def seeds(number: int) -> list[torch.Generator]:
    """A generator for each picture."""
    return [torch.Generator().manual_seed(seed) for seed in range(number)]


def measure(pipeline: MDMPipeline, plain: PlainUNet, num_pictures: int, args: argparse.Namespace) -> dict[str, Any]:
    """One row of the table. Prompts are equally long, so that all go through the model together."""
    prompts = [DEFAULT_PROMPTS[0]] * num_pictures
    calls = {
        "plain": lambda: draw_plainly(pipeline, plain, prompts, args.num_inference_steps, args.guidance_scale),
        "ours": lambda: draw(pipeline, prompts, args.num_inference_steps, args.guidance_scale),
    }
    difference = max(
        (one - other).abs().max().item() for one, other in zip(calls["plain"](), calls["ours"](), strict=True)
    )
    seconds = time_by_turns(calls, args.rounds, clock_of("cpu"))
    return {
        "pictures": num_pictures,
        "steps": args.num_inference_steps,
        "plain": spelled(summary(seconds["plain"])),
        "ours": spelled(summary(seconds["ours"])),
        "plain / ours": f"{ratio_of_medians(seconds['plain'], seconds['ours']):.2f}",
        "largest difference of a pixel": f"{difference:.1e}",
    }


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command's flags."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--model", default=str(ROOT / "model_cards" / "mdm-emoji-64"), help="folder of a pipeline of pictures"
    )
    parser.add_argument("--num_pictures", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--num_inference_steps", type=int, default=25)
    parser.add_argument("--guidance_scale", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", help="write the results as JSON")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Measure every number of pictures."""
    args = parse_args(argv)
    pipeline = load_pipeline(args.model, "cpu")
    pipeline.set_progress_bar_config(disable=True)
    plain = PlainUNet(pipeline.unet).eval()
    rows = [measure(pipeline, plain, number, args) for number in args.num_pictures]
    report("A guided drawing", describe_machine("cpu"), rows, args.output)


if __name__ == "__main__":
    main()
