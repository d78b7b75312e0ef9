# SPDX-License-Identifier: Apache-2.0
"""Time a guided drawing against the published sampler and U-Net in plain form: same steps, same images.

The prompts are encoded before, once for both.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import torch
from measured_models import NAMES, PUBLISHED_SIZES, TEXT_LENGTH, build, text_width
from measuring import ROOT, count_flops
from plain_unet import PlainUNet
from results_table import Results
from variants import DTYPES, WAYS_TO_COMPILE, add_machine_flags, begin, compare, compiled, layout_of

from diffusers_mdm import MatryoshkaScheduler, MDMPipeline
from diffusers_mdm.demo import DEFAULT_PROMPTS, load_pipeline
from diffusers_mdm.schedulers.predictions import level_predictions
from diffusers_mdm.training.recipe.loading import load_recipe

Texts = dict[str, torch.Tensor]  # arguments of a pipeline


@torch.no_grad()
def draw_plainly(
    pipeline: MDMPipeline, plain: PlainUNet, texts: Texts, num_steps: int, guidance_scale: float
) -> list[torch.Tensor]:
    """Images of every level in [0, 1], by DDIM with eta 0 as the formulas have it (ml-mdm, Sampling)."""
    features = torch.cat([texts["negative_prompt_embeds"], texts["prompt_embeds"]])
    mask = torch.cat([texts["negative_prompt_attention_mask"], texts["prompt_attention_mask"]])
    scheduler, sides, device = pipeline.scheduler, pipeline.unet.sample_sizes, features.device
    kinds = level_predictions(scheduler.config["prediction_type"], len(sides))
    if not {"v_prediction", "sample"}.issuperset(kinds):
        raise ValueError(f"The plain form knows models that predict v or the image, not {', '.join(kinds)}.")
    scheduler.set_timesteps(num_steps)
    generators = seeds(len(features) // 2, device)
    sample = [
        torch.cat([torch.randn(1, 3, side, side, generator=generator, device=device) for generator in generators])
        for side in sides
    ]
    timesteps = scheduler.timesteps.tolist()
    for timestep, later in zip(timesteps, [*timesteps[1:], None], strict=True):
        doubled = [torch.cat([level, level]).to(features.dtype) for level in sample]
        times = torch.full((len(features),), timestep, device=device)
        predictions = plain(doubled, times, features, mask)
        for index, (level, prediction, side) in enumerate(zip(sample, predictions, sides, strict=True)):
            without, with_prompt = prediction.float().chunk(2)
            guided = without + guidance_scale * (with_prompt - without)
            ratio = side / sides[0]
            g = scheduler.alpha_cumprod(torch.tensor(timestep), ratio)
            g_s = torch.tensor(1.0) if later is None else scheduler.alpha_cumprod(torch.tensor(later), ratio)
            clean = guided if kinds[index] == "sample" else g.sqrt() * level - (1 - g).sqrt() * guided
            clean = clean.clamp(-1, 1)
            noise = (level - g.sqrt() * clean) / (1 - g).sqrt()
            sample[index] = g_s.sqrt() * clean + (1 - g_s).sqrt() * noise
    return [(level.clamp(-1, 1) + 1) / 2 for level in sample]


def draw(pipeline: MDMPipeline, texts: Texts, num_steps: int, guidance_scale: float) -> list[torch.Tensor]:
    """The same by the pipeline."""
    return pipeline(
        **texts,
        num_inference_steps=num_steps,
        guidance_scale=guidance_scale,
        generator=seeds(len(texts["prompt_embeds"]), texts["prompt_embeds"].device),
        output_type="pt",
        output_pyramid=True,
        return_dict=False,
    )[1]


def seeds(number: int, device: torch.device) -> list[torch.Generator]:
    """A generator for each image."""
    return [torch.Generator(device).manual_seed(seed) for seed in range(number)]


def pipeline_of(model: str, device: str) -> MDMPipeline:
    """A saved pipeline by its folder, or a model by its name in `measured_models`, without text encoder."""
    if model not in NAMES:
        return load_pipeline(model, device)
    settings = {}
    if model in PUBLISHED_SIZES:
        settings = load_recipe(ROOT / "training" / "recipes" / f"cc12m_{model}.yaml").scheduler
    unet = build(model, device).eval()
    scheduler = MatryoshkaScheduler(base_sample_size=unet.config.sample_size, **settings)
    return MDMPipeline(text_encoder=None, tokenizer=None, unet=unet, scheduler=scheduler)


def texts_for(pipeline: MDMPipeline, num_images: int) -> Texts:
    """The encoded prompts. They are equally long, so that all go through the model together."""
    unet = pipeline.unet
    if pipeline.text_encoder is None:
        shape, place = (num_images, TEXT_LENGTH), {"device": unet.device}
        features = [torch.randn(*shape, text_width(unet), dtype=unet.dtype, **place) for _ in range(2)]
        masks = [torch.ones(shape, dtype=torch.bool, **place) for _ in range(2)]
    else:
        *features, mask, negative_mask = pipeline.encode_prompt([DEFAULT_PROMPTS[0]] * num_images)
        features, masks = [entry.to(unet.dtype) for entry in features], [mask, negative_mask]
    return {
        "prompt_embeds": features[0],
        "negative_prompt_embeds": features[1],
        "prompt_attention_mask": masks[0],
        "negative_prompt_attention_mask": masks[1],
    }


@torch.no_grad()
def measure(
    pipeline: MDMPipeline, plain: PlainUNet, num_images: int, way: str, args: argparse.Namespace
) -> dict[str, Any]:
    """The end of one row of the table."""
    settings = (args.num_inference_steps, args.guidance_scale)
    one = texts_for(pipeline, 1)
    flops = {  # the first step also encodes the text
        "plain": num_images * settings[0] * count_flops(partial(draw_plainly, pipeline, plain, one, 1, settings[1])),
        "ours": num_images * settings[0] * count_flops(partial(draw, pipeline, one, 1, settings[1])),
    }
    texts, whole = texts_for(pipeline, num_images), pipeline.unet
    calls = {
        "plain": partial(draw_plainly, pipeline, plain, texts, *settings),
        "ours": partial(draw, pipeline, texts, *settings),
    }
    try:
        pipeline.unet = compiled(whole, way)
        return compare(calls, args, flops, images=num_images)
    finally:
        pipeline.unet = whole


def measure_model(name: str, args: argparse.Namespace, results: Results) -> None:
    """Measure every number of images and way to compile of a model."""
    pipeline = pipeline_of(name, args.device)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.unet.to(DTYPES[args.dtype])
    plain = PlainUNet(pipeline.unet).eval()
    pipeline.unet.to(memory_format=layout_of(args))
    for number in args.num_images:
        for way in args.compile:
            labels = {"model": Path(name).name, "images": number, "steps": args.num_inference_steps, "compile": way}
            results.add(labels, partial(measure, pipeline, plain, number, way, args))


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command's flags."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--models",
        nargs="+",
        default=[str(ROOT / "model_cards" / "mdm-emoji-64")],
        help=f"folders of pipelines, or names of models with random weights: {', '.join(NAMES)}",
    )
    parser.add_argument("--num_images", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--num_inference_steps", type=int, default=25)
    parser.add_argument("--guidance_scale", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--compile", nargs="+", default=["none"], choices=WAYS_TO_COMPILE, help="a row for each")
    add_machine_flags(parser)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Measure every model."""
    args = parse_args(argv)
    results = begin("A guided drawing", args)
    for name in args.models:
        with results.attempt({"model": name}):
            measure_model(name, args, results)
    results.finish()


if __name__ == "__main__":
    main()
