# SPDX-License-Identifier: Apache-2.0
"""Writing a Hugging Face Space: the files in `space/`, this package, and the models."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from .saved_pipelines import read_index

SPACE = Path(__file__).with_name("space")
PACKAGE = Path(__file__).parents[1]
MODELS_FOLDER, MODELS_FILE = "models", "models.txt"
EXTRA = re.compile(r"""extra\s*==\s*['"]([\w-]+)['"]""")


def write_space(folder: Path, models: Sequence[str]) -> None:
    """Write a folder that is a complete Space: it appears when it is complete.

    The Space contains a copy of this package, so that it does not depend on a published release of it.

    Args:
        folder: must not exist yet.
        models: pipeline folders, which are copied, or Hub ids, which the Space downloads.

    Raises:
        ValueError: the folder exists, a model is not a pipeline of this package, or two have the same name.
        OSError: a file cannot be written.
    """
    if folder.exists():
        raise ValueError(f"{folder} already exists; choose another --write_space, or delete it.")
    for model in models:
        read_index(model)
    local = [Path(model).resolve() for model in models if Path(model).is_dir()]
    names = [path.name for path in local]
    if len(set(names)) < len(names):
        raise ValueError(f"Two of the models have the same name: {', '.join(names)}. Rename one of the folders.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    ignored = shutil.ignore_patterns("__pycache__", "*.pyc")
    try:
        shutil.copytree(SPACE, unfinished, ignore=ignored)
        shutil.copytree(PACKAGE, unfinished / PACKAGE.name, ignore=ignored)
        for path in local:
            shutil.copytree(path, unfinished / MODELS_FOLDER / path.name)
        remote = [model for model in models if not Path(model).is_dir()]
        if remote:
            (unfinished / MODELS_FILE).write_text("\n".join(remote) + "\n", encoding="utf-8")
        (unfinished / "requirements.txt").write_text("\n".join(requirements()) + "\n", encoding="utf-8")
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def requirements() -> list[str]:
    """Return what the package and its web page need, as lines of a requirements file."""
    lines = []
    for line in metadata.requires("diffusers-mdm") or ():
        needed, _, marker = line.partition(";")
        extra = EXTRA.search(marker)
        if extra is None or extra[1] == "demo":
            lines.append(needed.strip())
    return lines
