# SPDX-License-Identifier: Apache-2.0
"""The work of `diffusers-mdm generate`: what each file shows, in batches, with any of the pipelines."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ...pipelines.image_grid import make_grid
from ...public_names import MatryoshkaScheduler
from ..saved_pipelines import default_device, open_pipeline
from .drawn_files import FileNames, write_clip, write_image
from .generate_flags import CALL_FLAGS, SCHEDULER_FLAGS


@dataclass(frozen=True)
class Subject:
    """What one file shows.

    Attributes:
        prompt: a text; None for a model without text.
        label: number or name of a class; None without classes.
        seed: seed of the noise.
    """

    prompt: str | None
    label: int | str | None
    seed: int

    @property
    def title(self) -> str:
        """A short text for names and labels."""
        return ", ".join(str(part) for part in (self.prompt, self.label) if part not in (None, "")) or "image"


@dataclass(frozen=True)
class Drawing:
    """A loaded pipeline and what to generate with it.

    Attributes:
        pipeline: one of this package's pipelines.
        subjects: one per file.
        settings: arguments of the pipeline's call that are the same for all.
        names: names of the files.
        levels: names of the pipeline's levels, innermost first.
    """

    pipeline: Any
    subjects: list[Subject]
    settings: dict[str, Any]
    names: FileNames

    levels: tuple[str, ...]


def open_drawing(args: argparse.Namespace) -> Drawing:
    """Load the model, and check everything that can be checked before the first image.

    Raises:
        ValueError: a flag does not fit the model, or files exist already.
        OSError: a file is missing.
    """
    prompts = read_prompts(args)
    FileNames(args.output_dir, args.name, "png")  # checked before the slow work
    pipeline = open_pipeline(args.model, getattr(torch, args.dtype), args.variant, args.revision)
    subjects = subjects_of(pipeline, prompts, args.classes, args.num_images, args.seed)
    settings = call_settings(pipeline, args)
    changes = {key: getattr(args, flag) for flag, key in SCHEDULER_FLAGS.items() if getattr(args, flag) is not None}
    if changes:
        change_scheduler(pipeline, changes)
    is_clip = "num_frames" in call_parameters(pipeline)
    suffix = args.format or ("webp" if is_clip else "png")
    if not is_clip and suffix in ("gif", "mp4"):
        raise ValueError(f"--format {suffix} is for clips; this model generates images, as png, jpg or webp.")
    if is_clip and suffix in ("png", "jpg"):
        raise ValueError(f"--format {suffix} is for images; this model generates clips, as webp, gif or mp4.")
    if is_clip and args.grid is not None:
        raise ValueError("--grid shows images; this model generates clips.")
    names, levels = FileNames(args.output_dir, args.name, suffix, args.all_levels), level_names(pipeline)
    drawn = [i for i, side in enumerate(pipeline.image_sides) if args.height is None or side <= args.height]
    shown = drawn if args.all_levels else drawn[-1:]
    paths = [names.path(i, s.title, s.seed, levels[level]) for i, s in enumerate(subjects) for level in shown]
    names.check(paths + ([] if args.grid is None else [args.grid]), args.overwrite)
    if args.lora is not None:
        pipeline.load_lora_weights(args.lora)
    place(pipeline, args)
    return Drawing(pipeline, subjects, settings, names, levels)


def level_names(pipeline: Any) -> tuple[str, ...]:
    """Return the names of all levels: the side in pixels, with the number of frames if several have that side."""
    sides, frames = pipeline.image_sides, pipeline.unet.level_frames
    return tuple(
        f"{side}" if sides.count(side) == 1 else f"{side}x{count}" for side, count in zip(sides, frames, strict=True)
    )


def place(pipeline: Any, args: argparse.Namespace) -> None:
    """Move a pipeline to its device, as the flags say."""
    device = torch.device(args.device) if args.device else default_device()
    if args.cpu_offload:
        pipeline.enable_model_cpu_offload(device=device)
    else:
        pipeline.to(device)
    if args.level_slicing:
        pipeline.unet.enable_level_slicing()


def call_parameters(pipeline: Any) -> Mapping[str, inspect.Parameter]:
    """Return the parameters of a pipeline's call."""
    return inspect.signature(pipeline.__call__).parameters


def read_prompts(args: argparse.Namespace) -> list[str] | None:
    """Return the prompts of --prompts or --prompts_file; None without them.

    Raises:
        ValueError: the file has none, or is not text.
        OSError: the file cannot be read.
    """
    if args.prompts_file is None:
        return args.prompts
    try:
        lines = args.prompts_file.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{args.prompts_file} is not text in UTF-8: {error}.") from error
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise ValueError(f"{args.prompts_file} has no prompts; write one per line.")
    return prompts


def subjects_of(
    pipeline: Any, prompts: Sequence[str] | None, classes: Sequence[str] | None, num_images: int, seed: int
) -> list[Subject]:
    """Return what each file shows: every prompt or class `num_images` times, each with a seed of its own.

    Args:
        pipeline: decides which of the two there must be.
        prompts: texts; None without any.
        classes: names or numbers as text; None without any. Beside prompts there must be one, or one for each.
        num_images: files per prompt or class.
        seed: seed of the first file; the next has the next number.

    Raises:
        ValueError: the model needs prompts or classes, or does not take them.
    """
    takes_classes = pipeline.unet.config["num_class_embeds"] is not None
    takes_text = getattr(pipeline, "tokenizer", None) is not None
    conditions = (("prompts", prompts, takes_text), ("classes", classes, takes_classes))
    for name, given, takes in conditions:
        if given is not None and not takes:
            raise ValueError(f"--{name} {given[0]!r}: this model takes no {name}.")
    for name, given, takes in conditions:
        if given is None and takes and (name == "classes" or not takes_classes):
            raise ValueError(f"This model generates from {name}: pass --{name}.")
    texts: list[str | None] = [None] if prompts is None else [*prompts]
    labels: list[int | str | None] = [int(label) if label.isdecimal() else label for label in classes or []] or [None]
    texts, labels = (texts * len(labels), labels) if len(texts) == 1 else (texts, labels)
    labels = labels * len(texts) if len(labels) == 1 else labels
    if len(texts) != len(labels):
        raise ValueError(f"There are {len(texts)} prompts and {len(labels)} classes; pass one of either, or as many.")
    pairs = [pair for pair in zip(texts, labels, strict=True) for _ in range(num_images)]
    return [Subject(text, label, seed + i) for i, (text, label) in enumerate(pairs)]


def call_settings(pipeline: Any, args: argparse.Namespace) -> dict[str, Any]:
    """Return the flags that are arguments of the pipeline's call; lists of one number are that number.

    Raises:
        ValueError: the pipeline has no such argument.
    """
    known = call_parameters(pipeline)
    settings = {name: getattr(args, name) for name in CALL_FLAGS if getattr(args, name) is not None}
    for name, value in settings.items():
        if name not in known:
            raise ValueError(f"--{name}: {type(pipeline).__name__} has no such setting.")
        if isinstance(value, list) and len(value) == 1:
            settings[name] = value[0]
    if args.lora_scale is not None:
        settings["cross_attention_kwargs"] = {"scale": args.lora_scale}
    if args.negative_prompt is not None:
        if args.prompts is None and args.prompts_file is None:
            raise ValueError("--negative_prompt needs prompts: pass --prompts or --prompts_file.")
        settings["negative_prompt"] = args.negative_prompt
    return settings


def change_scheduler(pipeline: Any, changes: Mapping[str, Any]) -> None:
    """Give a pipeline a scheduler with another solver.

    Raises:
        ValueError: its scheduler is one of diffusers, or a value is unknown.
    """
    scheduler = pipeline.scheduler
    if not isinstance(scheduler, MatryoshkaScheduler):
        raise ValueError(
            f"The solver of a {type(scheduler).__name__} cannot be changed; expected MatryoshkaScheduler."
        )
    pipeline.scheduler = MatryoshkaScheduler.from_config(scheduler.config, **changes)


def draw_all(drawing: Drawing, args: argparse.Namespace) -> list[Path]:
    """Generate all files, batch by batch; each batch is written before the next one starts.

    Returns:
        The paths of the files.
    """
    written: list[Path] = []
    columns: list[list[Any]] = []
    total = -(-len(drawing.subjects) // args.batch_size)
    for number in range(total):
        start = number * args.batch_size
        batch = drawing.subjects[start : start + args.batch_size]
        drawing.pipeline.set_progress_bar_config(desc=f"batch {number + 1} of {total}", leave=number + 1 == total)
        levels = draw_batch(drawing, batch)
        for index, subject in enumerate(batch):
            images = [level[index] for level in levels]
            written += write_subject(drawing, args, start + index, subject, images)
            columns.append(images)
    if args.grid is not None:
        pyramid = [list(level) for level in zip(*columns, strict=True)]
        args.grid.parent.mkdir(parents=True, exist_ok=True)
        write_image(make_grid(pyramid, [subject.title for subject in drawing.subjects]), args.grid, {})
        written.append(args.grid)
    return written


def draw_batch(drawing: Drawing, batch: Sequence[Subject]) -> list[Any]:
    """Generate a batch; return the images or clips of every level, innermost first."""
    arguments = dict(drawing.settings)
    if batch[0].prompt is not None:
        arguments["prompt"] = [subject.prompt for subject in batch]
        if "negative_prompt" in arguments:
            arguments["negative_prompt"] = [arguments["negative_prompt"]] * len(batch)
    if batch[0].label is not None:
        arguments["class_labels"] = [subject.label for subject in batch]
    if "batch_size" in call_parameters(drawing.pipeline):  # a model without conditions
        arguments["batch_size"] = len(batch)
    arguments["generator"] = [torch.Generator("cpu").manual_seed(subject.seed) for subject in batch]
    output = drawing.pipeline(**arguments, output_type="pil", output_pyramid=True)
    return list(output.pyramid)


def write_subject(
    drawing: Drawing, args: argparse.Namespace, index: int, subject: Subject, images: Sequence[Any]
) -> list[Path]:
    """Write the files of one subject, at every level or the outermost one; return their paths."""
    about = {"model": args.model, "prompt": subject.prompt, "class": subject.label, "seed": subject.seed}
    about |= drawing.settings
    about |= {key: value for key in SCHEDULER_FLAGS if (value := getattr(args, key)) is not None}
    paths = []
    named = list(zip(drawing.levels, images, strict=False))  # the inner levels, if --height says so
    for level, image in named if args.all_levels else named[-1:]:
        path = drawing.names.path(index, subject.title, subject.seed, level)
        if isinstance(image, list):
            write_clip(image, path, args.fps)
        else:
            write_image(image, path, about)
        paths.append(path)
    return paths
