# SPDX-License-Identifier: Apache-2.0
"""Draw a labelled grid of pictures, one column a prompt and one row a level of the pyramid.

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

from .pipelines.picture_grid import make_grid, size_name
from .pipelines.pipeline_mdm import MDMPipeline

# Two of each of the four drawing styles; things that the demo model draws well.
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
    """The accelerator that PyTorch finds on this machine, else "cpu"."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def split_prompts(text: str) -> list[str]:
    """Split a list of prompts written with semicolons, since prompts themselves have commas.

    Raises:
        ValueError: if nothing is left after dropping blank parts.
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
    # float32 is asked for because transformers would otherwise keep the dtype of the file beside a float32 U-Net.
    pipeline = MDMPipeline.from_pretrained(folder, dtype=torch.float32)
    return pipeline.to(device)


def draw_pyramid(
    pipeline: MDMPipeline,
    prompts: Sequence[str],
    seed: int = 0,
    num_inference_steps: int | None = None,
    guidance_scale: float | None = None,
) -> list[list[Image.Image]]:
    """Draw one picture for each prompt and return every level of it.

    Args:
        pipeline: the loaded pipeline.
        prompts: one text for each picture.
        seed: picture i starts from the noise of `seed + i`, so that it does not depend on the other prompts.
        num_inference_steps: steps of the sampler; None takes what the model's folder says.
        guidance_scale: strength of the guidance; None takes what the model's folder says.

    Returns:
        For each level, innermost first, the pictures in the order of the prompts.
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
    parser = argparse.ArgumentParser(prog="python -m diffusers_mdm.demo", description="Draw a grid of pictures.")
    parser.add_argument(
        "--model", metavar="FOLDER", default="model_cards/mdm-emoji-64", help="folder of a saved pipeline"
    )
    parser.add_argument(
        "--prompts", metavar="TEXTS", default=";".join(DEFAULT_PROMPTS), help="prompts, separated by semicolons"
    )
    parser.add_argument("--output", metavar="FILE", default="demo.png", help="the picture to write")
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="picture i starts from the noise of seed + i")
    own = "what the model's folder says"
    parser.add_argument("--num_inference_steps", metavar="N", type=int, help=f"steps of the sampler (default: {own})")
    parser.add_argument("--guidance_scale", metavar="W", type=float, help=f"strength of the guidance (default: {own})")
    parser.add_argument(
        "--device", metavar="DEVICE", default=best_device(), help="cpu, cuda, mps (default: %(default)s)"
    )
    return parser.parse_args(args)


def main(args: Sequence[str] | None = None) -> None:
    """Load the model, draw the grid, write it and say where it is."""
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
    print(f"{len(prompts)} pictures at {sizes}: loaded in {loaded - start:.1f} s, drawn in {drawn - loaded:.1f} s")
    print(f"Wrote {output}")


if __name__ == "__main__":
    main()
