# SPDX-License-Identifier: Apache-2.0
"""Generate a labelled grid of images: one column per prompt, one row per level of the pyramid.

`python -m diffusers_mdm.demo --model FOLDER --prompts "red apple;sad cat" --output demo.png`
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from PIL import Image

from .pipelines.image_grid import make_grid, size_name
from .pipelines.pipeline_mdm import MDMPipeline

# Two prompts for each of the four drawing styles, chosen because the demo model draws them well.
DEFAULT_PROMPTS = (
    "strawberry, 3d render",
    "red heart, flat icon",
    "fox, twemoji style",
    "tomato, noto style",
    "cherries, 3d render",
    "red apple, flat icon",
    "evergreen tree, twemoji style",
    "cat face, noto style",
)


def best_device() -> str:
    """Return the accelerator that PyTorch finds on this machine, else "cpu"."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def split_prompts(text: str) -> list[str]:
    """Split prompts at semicolons, since prompts themselves contain commas.

    Raises:
        ValueError: if only blank parts are left.
    """
    prompts = [part.strip() for part in text.split(";") if part.strip()]
    if not prompts:
        raise ValueError(f"No prompt in {text!r}. Separate prompts by semicolons, as in 'red apple;sad cat'.")
    return prompts


def load_pipeline(folder: str | Path, device: torch.device | str = "cpu") -> MDMPipeline:
    """Load the pipeline saved in a local folder, in float32.

    Raises:
        ValueError: if the folder is missing or holds no pipeline.
    """
    folder = Path(folder)
    if not (folder / "model_index.json").is_file():
        state = "holds no model_index.json" if folder.is_dir() else "does not exist"
        raise ValueError(
            f"The model folder '{folder}' {state}. Pass --model with a folder that `save_pretrained`, the training "
            "command or a conversion command wrote."
        )
    # Without dtype=float32 transformers would load the text encoder in the dtype of the file, beside a float32 U-Net.
    pipeline = MDMPipeline.from_pretrained(folder, dtype=torch.float32)
    return pipeline.to(device)


def draw_pyramid(
    pipeline: MDMPipeline,
    prompts: Sequence[str],
    seed: int = 0,
    num_inference_steps: int | None = None,
    guidance_scale: float | None = None,
) -> list[list[Image.Image]]:
    """Generate one image per prompt and return every level.

    Args:
        pipeline: the loaded pipeline.
        prompts: one text per image.
        seed: image i starts from noise with seed `seed + i`, so that it does not depend on the other prompts.
        num_inference_steps: number of sampling steps; None uses the default of the model's folder.
        guidance_scale: strength of the guidance; None uses the default of the model's folder.

    Returns:
        For each level, innermost first, the images in the order of the prompts.
    """
    generators = [torch.Generator("cpu").manual_seed(seed + index) for index in range(len(prompts))]
    drawn = pipeline(
        list(prompts),
        num_inference_steps=num_inference_steps,
        guidance_scale=guidance_scale,
        generator=generators,
        output_type="pil",
        output_pyramid=True,
        return_dict=False,
    )
    return cast(tuple[Any, list[list[Image.Image]]], drawn)[1]


def parse_args(args: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m diffusers_mdm.demo", description="Generate a grid of images.")
    parser.add_argument(
        "--model", metavar="FOLDER", default="model_cards/mdm-emoji-256", help="folder of a saved pipeline"
    )
    parser.add_argument(
        "--prompts", metavar="TEXTS", default=";".join(DEFAULT_PROMPTS), help="prompts, separated by semicolons"
    )
    parser.add_argument("--output", metavar="FILE", default="demo.png", help="image file to write")
    parser.add_argument(
        "--seed", metavar="N", type=int, default=0, help="image i starts from noise with seed SEED + i"
    )
    own = "the default of the model's folder"
    parser.add_argument(
        "--num_inference_steps", metavar="N", type=int, help=f"number of sampling steps (default: {own})"
    )
    parser.add_argument("--guidance_scale", metavar="W", type=float, help=f"strength of the guidance (default: {own})")
    parser.add_argument(
        "--device", metavar="DEVICE", default=best_device(), help="cpu, cuda, mps (default: %(default)s)"
    )
    return parser.parse_args(args)


def main(args: Sequence[str] | None = None) -> None:
    """Load the model, generate the grid, write it and print its path."""
    options = parse_args(args)
    start = time.perf_counter()
    try:
        prompts = split_prompts(options.prompts)
        print(f"Loading {options.model} ...", flush=True)
        pipeline = load_pipeline(options.model, options.device)
    except ValueError as error:
        raise SystemExit(f"error: {error}") from error
    loaded = time.perf_counter()
    pyramid = draw_pyramid(
        pipeline, prompts, options.seed, options.num_inference_steps, guidance_scale=options.guidance_scale
    )
    drawn = time.perf_counter()
    output = Path(options.output).resolve()
    output.parent.mkdir(parents=True, exist_ok=True)
    make_grid(pyramid, prompts).save(output)
    sizes = ", ".join(size_name(level[0]) for level in pyramid)
    print(f"{len(prompts)} images at {sizes}: loaded in {loaded - start:.1f} s, drawn in {drawn - loaded:.1f} s")
    print(f"Wrote {output}")


if __name__ == "__main__":
    main()
