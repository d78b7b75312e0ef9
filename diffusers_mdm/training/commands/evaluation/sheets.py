# SPDX-License-Identifier: Apache-2.0
"""Verbs of `diffusers-mdm evaluate` that show images to people: samples of a model, and models above each other."""

from __future__ import annotations

import argparse

from PIL import Image

from ....evaluation.generate import open_levels
from ....evaluation.report import contact_sheet
from ....evaluation.sample_sheet import draw_seeds, sample_sheet
from .measure import (
    check_takes,
    chosen_captions,
    first_numbers,
    given_settings,
    load_model,
    open_images,
    true_images,
)


def write_samples(args: argparse.Namespace) -> None:
    """Generate images for captions from several seeds, and write them to one image file; one row without captions."""
    seeds = list(range(args.seed, args.seed + args.num_seeds))
    has_captions = args.prompts is not None or args.captions_file is not None or args.data_dir is not None
    captions = requested_captions(args) if has_captions else [""]
    pipeline = load_model(args)
    check_takes(pipeline, args, captions=has_captions)
    samples = draw_seeds(pipeline, captions, seeds, args.batch_size, given_settings(args))
    truth = None if args.data_dir is None else real_images(args, captions, max(samples[0][-1][0].size))
    args.output.parent.mkdir(parents=True, exist_ok=True)
    sample_sheet(samples, captions, seeds, truth).save(args.output)
    print(f"{args.output}: {len(captions)} captions, {len(seeds)} seeds")


def requested_captions(args: argparse.Namespace) -> list[str]:
    """Return the captions of the command line, of a file, or of the data set.

    Raises:
        ValueError: there are fewer than requested.
    """
    if args.prompts is not None:
        return list(args.prompts)
    return chosen_captions(args)


def real_images(args: argparse.Namespace, captions: list[str], side: int) -> list[Image.Image | None]:
    """Return the real image of each caption, None if the data set has no such caption."""
    images, known = open_images(args, side)
    numbers = first_numbers(known)
    return [
        Image.fromarray(images.load([numbers[caption]]).pixels[0].permute(1, 2, 0).numpy())
        if caption in numbers
        else None
        for caption in captions
    ]


def write_sheet(args: argparse.Namespace) -> None:
    """Write images that several models have generated for the same captions, and the real ones, to one image file."""
    drawn = [open_levels(folder)[-1] for folder in args.drawings]
    largest = max(drawn, key=lambda images: images.load([0]).shape[-1])
    truth = None if args.data_dir is None else true_images(args, largest)
    sheet = contact_sheet(drawn, truth, args.num_images, args.columns)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(args.output)
    print(f"{args.output}: {', '.join(str(folder) for folder in args.drawings)}" + (", real images" if truth else ""))
