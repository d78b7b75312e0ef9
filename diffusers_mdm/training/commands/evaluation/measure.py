# SPDX-License-Identifier: Apache-2.0
"""Verbs of `diffusers-mdm evaluate`: computing references, generating images, scoring, and all three in one."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ....evaluation.features import FeatureExtractor, InceptionFeatures, TransformersFeatures
from ....evaluation.generate import NUMBER, generate, open_levels, read_plan, takes_number
from ....evaluation.images import Images
from ....evaluation.recall import choose_records
from ....evaluation.reference import load_reference, make_reference, save_reference
from ....evaluation.report import card_section, contact_sheet, describe_left_out, markdown_table
from ....evaluation.score import FEATURES_OF, how_to_add, score
from ....processes import process_state
from ....public_names import DiffusionPipeline
from ...data.numbered import CaptionedImages
from ...data.sources import open_validation_images, validation_captions
from ...recipe.data import TableData
from .flags import DEFAULT_METRICS, OF_CAPTIONS

DINOV2, CLIP = "facebook/dinov2-base", "openai/clip-vit-large-patch14-336"


class ChosenImages:
    """A selection of the images of a data set, cropped to squares.

    Args:
        images: all images of the data set.
        captions: all captions of the data set.
        numbers: the numbers of the selected images.
    """

    def __init__(self, images: CaptionedImages, captions: Sequence[str], numbers: Sequence[int]):
        self.images, self.numbers = images, list(numbers)
        self.captions: Sequence[str] = [captions[number] for number in self.numbers]

    def __len__(self) -> int:
        return len(self.numbers)

    def load(self, numbers: Sequence[int]) -> torch.Tensor:
        """Return the images with these numbers, `(B, 3, S, S)`, uint8."""
        return self.images.load([self.numbers[number] for number in numbers]).pixels


def evaluate_model(args: argparse.Namespace) -> None:
    """Generate images, compute the reference at the sides of their levels, and score; all in `--output_dir`."""
    numbered = args.num_images is not None
    drawn, real = args.output_dir / "drawn", args.output_dir / "reference"
    drawing = {
        **vars(args),
        "data_dir": None if numbered else args.data_dir,
        "captions_file": None,
        "output_dir": drawn,
    }
    scoring = {
        **drawing,
        "drawings": drawn,
        "reference": real,
        "output": args.output_dir / "scores.json",
        "contact_sheet": None,
        "card_section": None,
    }
    scoring["metrics"] = chosen_metrics(argparse.Namespace(**scoring), numbered)
    features = features_of(scoring["metrics"])
    for name in features:
        open_extractor(name, args)  # what is missing is found before hours of drawing
    draw_captions(argparse.Namespace(**drawing))
    if process_state().is_main_process:
        sides = [level.load([0]).shape[-1] for level in open_levels(drawn)]
        whole = {"output_dir": real, "sides": sides, "features": features, "num_images": None}
        write_reference(argparse.Namespace(**{**vars(args), **whole}))
        score_drawings(argparse.Namespace(**scoring))


def write_reference(args: argparse.Namespace) -> None:
    """Compute the features of real images and write them to `--output_dir`."""
    images, captions = open_images(args, max(args.sides))
    chosen = choose(len(captions), args.num_images, args.seed)
    recipe = {
        "data": str(args.data_dir),
        "split": args.split,
        "sides": args.sides,
        "seed": args.seed if args.num_images is not None else None,
    }
    real = ChosenImages(images, captions, chosen)
    extractors = [open_extractor(name, args) for name in args.features]
    save_reference(make_reference(real, extractors, args.sides, args.batch_size, recipe), args.output_dir)
    print(f"{args.output_dir}: features of {len(real)} images at {', '.join(map(str, args.sides))} pixels")


def draw_captions(args: argparse.Namespace) -> None:
    """Generate images for captions, or as many as requested of an unconditional model, into `--output_dir`."""
    captions = read_captions(args)
    pipeline, given = load_model(args), given_settings(args)
    check_takes(pipeline, args, captions=args.num_images is None)
    argument = "prompt" if args.num_images is None else NUMBER
    levels = generate(
        pipeline, captions, args.output_dir, str(args.model_dir), args.seed, args.batch_size, given, argument
    )
    if process_state().is_main_process:
        names = ", ".join(level.name for level in levels)
        print(f"{args.output_dir}: {len(captions)} images at {names} pixels")


def load_model(args: argparse.Namespace) -> Any:
    """Load the pipeline of the command line on the device of this process."""
    pipeline = DiffusionPipeline.from_pretrained(args.model_dir, dtype=getattr(torch, args.dtype))
    pipeline.to(process_state().device)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def check_takes(pipeline: Any, args: argparse.Namespace, captions: bool) -> None:
    """Check that the flags fit the pipeline, which takes captions or is unconditional.

    Args:
        pipeline: the pipeline.
        args: the flags.
        captions: whether captions were given.

    Raises:
        ValueError: names the flag to pass or omit.
    """
    if not takes_number(pipeline):
        if not captions:
            prompts = "--prompts, " if "prompts" in args else ""
            raise ValueError(
                f"{args.model_dir} generates images for captions. Give the captions by {prompts}--captions_file or "
                "--data_dir."
            )
        return
    if captions:
        raise ValueError(
            f"{args.model_dir} is an unconditional model, which takes no captions; omit them, and pass "
            "--num_images to `generate`."
        )
    if args.guidance_scale is not None:
        raise ValueError(f"{args.model_dir} is an unconditional model, which has no guidance; omit --guidance_scale.")


def given_settings(args: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments of the pipeline's call that the command line has; others are the pipeline's own."""
    settings = {name: getattr(args, name) for name in ("num_inference_steps", "guidance_scale", "height")}
    return {name: value for name, value in settings.items() if value is not None}


def score_drawings(args: argparse.Namespace) -> None:
    """Compare generated images with a reference, print a table, and write the requested files."""
    plan, levels, reference = read_plan(args.drawings), open_levels(args.drawings), load_reference(args.reference)
    metrics = chosen_metrics(args, plan.argument == NUMBER)
    truth = None if args.data_dir is None else true_images(args, levels[-1])
    extractors = [open_extractor(name, args) for name in features_of(metrics)]
    scores = score(levels, reference, extractors, metrics, truth, args.batch_size)
    print(markdown_table(scores))
    if scores.left_out:
        print(f"\n{describe_left_out(scores)} {how_to_add(reference, sorted(scores.levels))}")
    for path in (args.output, args.contact_sheet, args.card_section):
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
    if args.output is not None:
        report = {"generation": vars(plan), "reference": reference.recipe, **scores.as_json()}
        args.output.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    if args.contact_sheet is not None:
        contact_sheet([levels[-1]], truth).save(args.contact_sheet)
    if args.card_section is not None:
        command = shlex.join(["python", *sys.argv])
        args.card_section.write_text(card_section(scores, plan, command), encoding="utf-8")


def chosen_metrics(args: argparse.Namespace, numbered: bool) -> list[str]:
    """Return the requested metrics, by default all that suit the images.

    Args:
        args: the flags of "score".
        numbered: whether the images were generated without captions.

    Raises:
        ValueError: a metric or flag needs captions, and the images were generated without.
    """
    if not numbered:
        return list(args.metrics or DEFAULT_METRICS)
    needing = [f"The metric {name!r}" for name in args.metrics or () if name in OF_CAPTIONS]
    needing += [] if args.data_dir is None else ["--data_dir"]
    if needing:
        raise ValueError(
            f"{needing[0]} needs the captions of images, and those in {args.drawings} were generated without; omit it."
        )
    return list(args.metrics or (name for name in DEFAULT_METRICS if name not in OF_CAPTIONS))


def features_of(metrics: Sequence[str]) -> list[str]:
    """Return the names of the features that metrics compare, each once."""
    return list(dict.fromkeys(FEATURES_OF[name] for name in metrics if name in FEATURES_OF))


def open_extractor(name: str, args: argparse.Namespace) -> FeatureExtractor:
    """Load the extractor of these features on the requested device."""
    device = args.device or process_state().device
    if name == "inception":
        return InceptionFeatures(device)
    path = {"dinov2": args.dinov2 or DINOV2, "clip": args.clip or CLIP}[name]
    return TransformersFeatures(name, path, device)


def open_images(args: argparse.Namespace, side: int) -> tuple[CaptionedImages, list[str]]:
    """Open the images of a data set, cropped to squares of `side` pixels, and their captions.

    Raises:
        ValueError: there is no such data set, split or column, or an image is damaged.
    """
    recipe = TableData(
        path=args.data_dir,
        train_split=args.split,
        validation_split=args.split,
        image_column=args.image_column,
        caption_column=args.caption_column,
        caption="" if args.no_captions else None,
        max_skipped_images=0,
    )
    images = open_validation_images(recipe, side)
    if images is None:
        raise ValueError(f"{args.data_dir} has no split {args.split!r}.")
    return images, list(validation_captions(recipe))


def read_captions(args: argparse.Namespace) -> list[str]:
    """Read the captions from a file or a data set; empty ones for `--num_images`.

    Raises:
        ValueError: none or several of these were given, or the file is empty.
    """
    if args.num_images is not None:
        if args.data_dir is not None or args.captions_file is not None or args.num_captions is not None:
            raise ValueError("--num_images is for an unconditional model, without captions; omit one of them.")
        if args.num_images < 1:
            raise ValueError(f"--num_images is {args.num_images}; expected at least 1.")
        return [""] * args.num_images
    if (args.data_dir is None) == (args.captions_file is None):
        raise ValueError(
            "Give the captions by either --data_dir or --captions_file, or for an unconditional model the number of "
            "images by --num_images."
        )
    return chosen_captions(args)


def chosen_captions(args: argparse.Namespace) -> list[str]:
    """Return `--num_captions` of the captions of the file or, without one, of the data set."""
    captions = open_images(args, 1)[1] if args.captions_file is None else captions_in(args.captions_file)
    return [captions[number] for number in choose(len(captions), args.num_captions, args.seed)]


def captions_in(file: Path) -> list[str]:
    """Read the captions in a file.

    Raises:
        ValueError: the file is empty.
    """
    lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    captions = [line for line in lines if line]
    if not captions:
        raise ValueError(f"{file} has no captions; write one per line.")
    return captions


def true_images(args: argparse.Namespace, drawn: Images) -> ChosenImages:
    """Return the real images with the captions of the generated images, at their size.

    Raises:
        ValueError: a caption is not in the data set.
    """
    images, captions = open_images(args, drawn.load([0]).shape[-1])
    numbers = first_numbers(captions)
    missing = [caption for caption in drawn.captions if caption not in numbers]
    if missing:
        raise ValueError(
            f"{len(missing)} captions of the generated images are not in {args.data_dir} ({args.split}), such as "
            f"{missing[0][:80]!r}; pass the data set that they were taken from, or omit --data_dir."
        )
    return ChosenImages(images, captions, [numbers[caption] for caption in drawn.captions])


def first_numbers(captions: Sequence[str]) -> dict[str, int]:
    """Return the number of the first image of each caption."""
    numbers: dict[str, int] = {}
    for number, caption in enumerate(captions):
        numbers.setdefault(caption, number)
    return numbers


def choose(total: int, number: int | None, seed: int) -> list[int]:
    """Choose `number` of the integers 0 to `total` - 1 at random, without repetition; None means all, in order.

    Raises:
        ValueError: there are fewer than `number`.
    """
    if number is None:
        return list(range(total))
    if not 1 <= number <= total:
        raise ValueError(f"{number} were requested, but there are {total}; request 1 to {total}.")
    return choose_records(range(total), number, seed)
