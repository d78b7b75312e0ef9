# SPDX-License-Identifier: Apache-2.0
"""Generating images for many captions into a folder: resumable, on several processes, with one seed per caption.

The folder contains `generation.json`, which records what is generated and how, and one folder per level, named after
its side, such as `16` and `64`. Each of these has the images `000000.png`, … and, once all are there, a
`metadata.jsonl` (`file_name`, `text`, `seed`) as in a data set.

Image n starts from noise with seed `seed + n`, so that, up to rounding, it depends neither on the batch size nor on
the number of processes.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers.utils.logging import tqdm
from PIL import Image

from ..processes import process_state, wait_for_everyone
from .images import METADATA_FILE, FolderImages

PLAN_FILE = "generation.json"
NUMBER = "batch_size"  # the argument of unconditional pipelines


@dataclass(frozen=True)
class Generation:
    """What is generated and how; a folder can be continued if this is equal.

    Attributes:
        model: folder or Hub id of the pipeline.
        pipeline: name of its class.
        seed: seed of the first image.
        num_captions: number of captions.
        captions_digest: hash of all captions in order.
        settings: further arguments of the pipeline's call.
        argument: name of the call's argument that takes the captions; "batch_size" for an unconditional pipeline,
            which takes their number.
    """

    model: str
    pipeline: str
    seed: int
    num_captions: int
    captions_digest: str
    settings: dict[str, Any] = field(default_factory=dict)
    argument: str = "prompt"


def takes_number(pipeline: Any) -> bool:
    """Return whether a pipeline is unconditional: it takes the number of images (`batch_size`), and no captions."""
    return NUMBER in inspect.signature(pipeline.__call__).parameters


def generate(
    pipeline: Any,
    captions: Sequence[str],
    folder: str | Path,
    model: str = "",
    seed: int = 0,
    batch_size: int = 16,
    settings: Mapping[str, Any] | None = None,
    argument: str = "prompt",
) -> list[Path]:
    """Generate an image for every caption; images from an earlier call with the same arguments are kept.

    Args:
        pipeline: one of ours, or any pipeline of diffusers that takes `generator` as a list.
        captions: one per image; those of images of an unconditional pipeline are empty.
        folder: folder for the images.
        model: name of the model in `generation.json`.
        seed: seed of the first image.
        batch_size: images per call on each process.
        settings: further arguments of the pipeline's call, as plain JSON values.
        argument: see `Generation`.

    Returns:
        The folders of the levels, innermost first.

    Raises:
        ValueError: there are no captions, or the folder belongs to other captions, another model, seed or settings.
    """
    if not captions:
        raise ValueError("There are no captions to generate images for.")
    folder, processes = Path(folder), process_state()
    digest = hashlib.sha256(json.dumps(list(captions)).encode()).hexdigest()[:16]
    plan = Generation(model, type(pipeline).__name__, seed, len(captions), digest, dict(settings or {}), argument)
    if processes.is_main_process:
        open_folder(folder, plan)
    wait_for_everyone(processes)
    missing = [number for number in range(len(captions)) if not is_drawn(folder, number)]
    mine = missing[processes.process_index :: processes.num_processes]
    for start in tqdm(range(0, len(mine), batch_size), desc="drawing", disable=not processes.is_local_main_process):
        numbers = mine[start : start + batch_size]
        levels = draw(pipeline, [captions[number] for number in numbers], [seed + number for number in numbers], plan)
        save_levels(levels, numbers, folder)
    wait_for_everyone(processes)
    found = level_folders(folder)
    if processes.is_main_process:
        for level in found:
            write_metadata(level, captions, seed)
    wait_for_everyone(processes)
    return found


def draw(pipeline: Any, captions: list[str], seeds: Sequence[int], plan: Generation) -> list[list[Image.Image]]:
    """Generate one batch; return it at every level that the pipeline outputs, innermost first."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    shows_levels = "output_pyramid" in inspect.signature(pipeline.__call__).parameters
    more = {"output_pyramid": True} if shows_levels else {}
    wanted = {plan.argument: len(captions) if plan.argument == NUMBER else captions}
    output = pipeline(**wanted, generator=generators, output_type="pil", **more, **plan.settings)
    return [list(level) for level in output.pyramid] if shows_levels else [list(output.images)]


def open_folder(folder: Path, plan: Generation) -> None:
    """Write `generation.json`, or check that the folder was begun with the same arguments.

    Raises:
        ValueError: the folder contains something else.
    """
    path = folder / PLAN_FILE
    wanted = json.loads(json.dumps(asdict(plan)))  # as it is read back: tuples become lists
    if path.exists():
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path} cannot be read ({error}); choose another folder.") from error
        if found != wanted:
            keys = [key for key in wanted if not isinstance(found, dict) or found.get(key) != wanted[key]]
            raise ValueError(
                f"{folder} has images generated with other arguments ({', '.join(keys)} differ); choose another "
                f"folder, or pass the same arguments to continue."
            )
        return
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty and has no {PLAN_FILE}; choose another folder.")
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(wanted, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_plan(folder: str | Path) -> Generation:
    """Read a folder's `generation.json`.

    Raises:
        ValueError: the file is missing or damaged.
    """
    path = Path(folder) / PLAN_FILE
    try:
        return Generation(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(
            f"{folder} was not written by `diffusers-mdm evaluate generate`: {PLAN_FILE}: {error}"
        ) from error


def level_name(image: Image.Image) -> str:
    """Return the name of a level's folder: the side of square images, otherwise width x height."""
    width, height = image.size
    return str(width) if width == height else f"{width}x{height}"


def level_folders(folder: str | Path) -> list[Path]:
    """Return the folders of levels with square images, smallest side first."""
    names = [path for path in Path(folder).iterdir() if path.is_dir() and path.name.isdecimal()]
    return sorted(names, key=lambda path: int(path.name))


def open_levels(folder: str | Path) -> list[FolderImages]:
    """Return the finished images of every level, innermost first.

    Raises:
        ValueError: there are none, or some are still missing.
    """
    plan = read_plan(folder)
    levels = [FolderImages(path) for path in level_folders(folder) if (path / METADATA_FILE).exists()]
    if not levels or any(len(level) != plan.num_captions for level in levels):
        raise ValueError(f"{folder} is not finished; run the same `diffusers-mdm evaluate generate` command again.")
    return levels


def image_path(level: Path, number: int) -> Path:
    """Return the path of an image of a level."""
    return level / f"{number:06d}.png"


def is_drawn(folder: Path, number: int) -> bool:
    """Return whether an image exists at every level."""
    levels = level_folders(folder)
    return bool(levels) and all(image_path(level, number).exists() for level in levels)


def save_levels(levels: Sequence[Sequence[Image.Image]], numbers: Sequence[int], folder: Path) -> None:
    """Write a batch of images at every level."""
    places = [folder / level_name(images[0]) for images in levels]
    # Create all folders before the first image: an image counts as finished when every folder has it.
    for place in places:
        place.mkdir(parents=True, exist_ok=True)
    for place, images in zip(places, levels, strict=True):
        for number, image in zip(numbers, images, strict=True):
            save_image(image, image_path(place, number))


def save_image(image: Image.Image, path: Path) -> None:
    """Write an image under a temporary name and rename it, so that a file with the final name is complete."""
    beside = path.with_name(f".{path.name}")
    image.save(beside, format="PNG")
    os.replace(beside, path)


def write_metadata(level: Path, captions: Sequence[str], seed: int) -> None:
    """Write the captions of all images of a level into its `metadata.jsonl`.

    Raises:
        ValueError: an image is missing.
    """
    missing = [number for number in range(len(captions)) if not image_path(level, number).exists()]
    if missing:
        raise ValueError(f"{len(missing)} images are missing in {level}, the first is {missing[0]:06d}.png.")
    lines = [
        json.dumps({"file_name": f"{number:06d}.png", "text": caption, "seed": seed + number}, ensure_ascii=False)
        for number, caption in enumerate(captions)
    ]
    beside = level / f".{METADATA_FILE}"
    beside.write_text("\n".join(lines) + "\n", encoding="utf-8")
    os.replace(beside, level / METADATA_FILE)
