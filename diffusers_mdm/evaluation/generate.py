# SPDX-License-Identifier: Apache-2.0
"""Drawing many captions into a folder: resumable, over several processes, one seed a caption.

The folder holds `generation.json`, which says what is drawn and how, and one folder a level named by its side, such as
`16` and `64`, with the pictures `000000.png`, … and, once all are there, a `metadata.jsonl` (`file_name`, `text`,
`seed`) as data sets have it.

Drawing n starts from noise seeded with `seed + n`, so that it depends neither on the batch nor on the processes beyond
rounding.
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
from .pictures import METADATA_FILE, FolderPictures

PLAN_FILE = "generation.json"


@dataclass(frozen=True)
class Generation:
    """What is drawn and how; equal where a folder can be continued.

    Attributes:
        model: folder or Hub id of the pipeline.
        pipeline: name of its class.
        seed: of the first drawing.
        num_captions: how many there are.
        captions_digest: of all captions in their order.
        settings: further arguments of the pipeline's call.
        argument: of the call, takes the captions.
    """

    model: str
    pipeline: str
    seed: int
    num_captions: int
    captions_digest: str
    settings: dict[str, Any] = field(default_factory=dict)
    argument: str = "prompt"


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
    """Draw every caption; what an earlier call with the same arguments has drawn stays.

    Args:
        pipeline: one of ours, or any pipeline of diffusers that takes `generator` as a list.
        captions: what is drawn.
        folder: takes the pictures.
        model: what the pipeline is called in `generation.json`.
        seed: of the first drawing.
        batch_size: drawings at a time on each process.
        settings: further arguments of the pipeline's call, plain JSON values.
        argument: of the pipeline's call that takes the captions.

    Returns:
        The folders of the levels, innermost first.

    Raises:
        ValueError: no captions; the folder belongs to other captions, another model, seed or settings.
    """
    if not captions:
        raise ValueError("There are no captions to draw.")
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
    """One batch at every level that the pipeline shows, innermost first."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    shows_levels = "output_pyramid" in inspect.signature(pipeline.__call__).parameters
    more = {"output_pyramid": True} if shows_levels else {}
    output = pipeline(**{plan.argument: captions}, generator=generators, output_type="pil", **more, **plan.settings)
    return [list(level) for level in output.pyramid] if shows_levels else [list(output.images)]


def open_folder(folder: Path, plan: Generation) -> None:
    """Write down what is drawn, or check that the folder holds the beginning of the same.

    Raises:
        ValueError: the folder holds something else.
    """
    path = folder / PLAN_FILE
    wanted = json.loads(json.dumps(asdict(plan)))  # as it comes back: tuples are lists
    if path.exists():
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path} cannot be read ({error}); give another folder.") from error
        if found != wanted:
            keys = [key for key in wanted if not isinstance(found, dict) or found.get(key) != wanted[key]]
            raise ValueError(
                f"{folder} holds drawings made with other arguments ({', '.join(keys)} differ); give another folder, "
                "or the same arguments to go on."
            )
        return
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty and holds no {PLAN_FILE}; give another folder.")
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(wanted, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_plan(folder: str | Path) -> Generation:
    """What `generate` wrote down of a folder.

    Raises:
        ValueError: it is missing or damaged.
    """
    path = Path(folder) / PLAN_FILE
    try:
        return Generation(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{folder} was not written by `evaluate.py generate`: {PLAN_FILE}: {error}") from error


def level_name(picture: Image.Image) -> str:
    """Name of the folder of a level: the side of a square, width x height otherwise."""
    width, height = picture.size
    return str(width) if width == height else f"{width}x{height}"


def level_folders(folder: str | Path) -> list[Path]:
    """The folders of the levels of square pictures, smallest side first."""
    names = [path for path in Path(folder).iterdir() if path.is_dir() and path.name.isdecimal()]
    return sorted(names, key=lambda path: int(path.name))


def open_levels(folder: str | Path) -> list[FolderPictures]:
    """The finished drawings of every level, innermost first.

    Raises:
        ValueError: there are none, or not all of them are there yet.
    """
    plan = read_plan(folder)
    levels = [FolderPictures(path) for path in level_folders(folder) if (path / METADATA_FILE).exists()]
    if not levels or any(len(level) != plan.num_captions for level in levels):
        raise ValueError(f"{folder} is not finished; run the same `evaluate.py generate` command again.")
    return levels


def picture_path(level: Path, number: int) -> Path:
    """Where a drawing of a level lies."""
    return level / f"{number:06d}.png"


def is_drawn(folder: Path, number: int) -> bool:
    """Whether a drawing is there at every level."""
    levels = level_folders(folder)
    return bool(levels) and all(picture_path(level, number).exists() for level in levels)


def save_levels(levels: Sequence[Sequence[Image.Image]], numbers: Sequence[int], folder: Path) -> None:
    """Write a batch of drawings at every level."""
    places = [folder / level_name(pictures[0]) for pictures in levels]
    # All folders come before any picture: a drawing counts as there when every folder has it.
    for place in places:
        place.mkdir(parents=True, exist_ok=True)
    for place, pictures in zip(places, levels, strict=True):
        for number, picture in zip(numbers, pictures, strict=True):
            save_picture(picture, picture_path(place, number))


def save_picture(picture: Image.Image, path: Path) -> None:
    """Write a picture beside its place and then rename it, so that a file of this name is whole."""
    beside = path.with_name(f".{path.name}")
    picture.save(beside, format="PNG")
    os.replace(beside, path)


def write_metadata(level: Path, captions: Sequence[str], seed: int) -> None:
    """Write the captions of all drawings of a level beside them.

    Raises:
        ValueError: a drawing is missing.
    """
    missing = [number for number in range(len(captions)) if not picture_path(level, number).exists()]
    if missing:
        raise ValueError(f"{len(missing)} drawings are missing in {level}, the first is {missing[0]:06d}.png.")
    lines = [
        json.dumps({"file_name": f"{number:06d}.png", "text": caption, "seed": seed + number}, ensure_ascii=False)
        for number, caption in enumerate(captions)
    ]
    beside = level / f".{METADATA_FILE}"
    beside.write_text("\n".join(lines) + "\n", encoding="utf-8")
    os.replace(beside, level / METADATA_FILE)
