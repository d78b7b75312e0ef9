# SPDX-License-Identifier: Apache-2.0
"""Writing the recipe of a run to its output folder, such that `load_recipe` can read it."""

import dataclasses
import functools
import json
import os
import re
from pathlib import Path
from typing import Any

from .recipe import Recipe

FILE_NAME = "recipe.json"
# A JSON string, or a number that YAML would read as text because it has no decimal point.
_STRING_OR_NUMBER = re.compile(r'("(?:[^"\\]|\\.)*")|(?<![\d.])(-?\d+)(e[-+]\d+)')


def write_recipe(recipe: Recipe, folder: Path) -> Path:
    """Write `recipe.json` into `folder`.

    Local folders and files are written relative to `folder`, where `load_recipe` looks for them first. The recipe then
    works from any working directory, and reveals as little as possible about the machine.

    Returns:
        The path of the file.
    """
    move = functools.partial(relative_path, folder=folder)
    images = recipe.images and recipe.images.relocated(move, move)
    recipe = dataclasses.replace(recipe, data=recipe.data.relocated(move, move), images=images)
    values = dataclasses.asdict(recipe)
    encoder, pretrained, prior = (values[part] for part in ("text_encoder", "pretrained", "prior_preservation"))
    local = [(encoder, "pretrained"), (pretrained, "path"), (prior, "class_data_dir"), (values["vae"], "pretrained")]
    for part, field in local:
        if part is not None and part[field] is not None:
            part[field] = relative_path(part[field], folder)
    folder.mkdir(parents=True, exist_ok=True)
    beside = folder / f".unfinished-{FILE_NAME}"
    beside.write_text(as_json(values), encoding="utf-8")
    os.replace(beside, folder / FILE_NAME)
    return folder / FILE_NAME


def relative_path(name: str, folder: Path) -> str:
    """Return a local path or tar pattern relative to `folder`; other names unchanged."""
    path = Path(name)
    is_pattern = path.suffix == ".tar"
    if "://" in name or not (path.parent.is_dir() if is_pattern else path.exists()):
        return name
    try:
        return Path(os.path.relpath(path.resolve(), folder.resolve())).as_posix()
    except ValueError:  # on another drive
        return name


def as_json(values: Any) -> str:
    """Return JSON that is also valid YAML 1.1, in which 5e-05 would be text and 5.0e-05 is a number."""
    text = json.dumps(values, indent=2, ensure_ascii=False)
    return _STRING_OR_NUMBER.sub(lambda match: match[1] or f"{match[2]}.0{match[3]}", text)
