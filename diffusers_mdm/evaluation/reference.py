# SPDX-License-Identifier: Apache-2.0
"""Reference features: the features of real images, saved in a folder.

They are computed once per data set and level; many models can then be scored against the same reference. The folder
contains `reference.json`, which records what it was made from, and `features.safetensors`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from diffusers.utils.logging import tqdm
from safetensors import SafetensorError

from .features import FeatureExtractor
from .images import Images, average_down
from .retrieval import thumbnail

DESCRIPTION_FILE, FEATURES_FILE = "reference.json", "features.safetensors"
FORMAT = 1
THUMBNAILS = "thumbnails"


@dataclass(frozen=True)
class Reference:
    """Features of N real images.

    Attributes:
        captions: N of them.
        thumbnails: `(N, 3, 16, 16)`, uint8, in which nearest images are searched.
        features: maps (name of the extractor, side in pixels) to `(N, D)`, float32.
        fingerprints: maps the name of an extractor to its fingerprint.
        recipe: describes the images: path, split, side, number, and anything else that was passed.
    """

    captions: list[str]
    thumbnails: torch.Tensor
    features: dict[tuple[str, int], torch.Tensor]
    fingerprints: dict[str, str]
    recipe: dict[str, Any] = field(default_factory=dict)

    @property
    def sides(self) -> list[int]:
        """Return the sides in pixels for which there are features, in ascending order."""
        return sorted({side for _, side in self.features})


def make_reference(
    images: Images,
    extractors: Sequence[FeatureExtractor],
    sides: Sequence[int],
    batch_size: int = 32,
    recipe: Mapping[str, Any] | None = None,
) -> Reference:
    """Compute the features of real images at every level.

    Args:
        images: the real images; their side is the largest of `sides` or a multiple of it.
        extractors: the feature extractors.
        sides: sides of the levels, in pixels.
        batch_size: images per batch.
        recipe: description of the images.

    Raises:
        ValueError: there are no images, or a side does not divide theirs.
    """
    if not len(images):
        raise ValueError("A reference needs images, and there are none.")
    parts: dict[tuple[str, int], list[torch.Tensor]] = {(one.name, side): [] for one in extractors for side in sides}
    thumbnails = []
    for start in tqdm(range(0, len(images), batch_size), desc="reference"):
        batch = images.load(range(start, min(start + batch_size, len(images))))
        thumbnails.append(thumbnail(batch))
        for side in sides:
            level = average_down(batch, side)
            for extractor in extractors:
                parts[extractor.name, side].append(extractor(level))
    return Reference(
        captions=list(images.captions),
        thumbnails=torch.cat(thumbnails),
        features={key: torch.cat(rows) for key, rows in parts.items()},
        fingerprints={one.name: one.fingerprint for one in extractors},
        recipe=dict(recipe or {}) | {"num_images": len(images)},
    )


def save_reference(reference: Reference, folder: str | Path) -> None:
    """Write a reference; if the folder already contains one, its files are replaced.

    Raises:
        ValueError: the folder exists and contains something else.
    """
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()) and not (folder / DESCRIPTION_FILE).exists():
        raise ValueError(f"{folder} exists and does not contain a reference; choose another folder.")
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"{name}/{side}": rows.contiguous() for (name, side), rows in reference.features.items()}
    tensors[THUMBNAILS] = reference.thumbnails.contiguous()
    description = {
        "format": FORMAT,
        "recipe": reference.recipe,
        "fingerprints": reference.fingerprints,
        "captions": reference.captions,
    }
    # A folder counts as a reference once it has the description, so that is written last.
    beside = folder / f".{FEATURES_FILE}"
    safetensors.torch.save_file(tensors, beside)
    os.replace(beside, folder / FEATURES_FILE)
    beside = folder / f".{DESCRIPTION_FILE}"
    beside.write_text(json.dumps(description, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(beside, folder / DESCRIPTION_FILE)


def load_reference(folder: str | Path) -> Reference:
    """Read a reference.

    Raises:
        ValueError: it is missing, damaged, or of a newer format; the message says which.
    """
    folder = Path(folder)
    try:
        description = json.loads((folder / DESCRIPTION_FILE).read_text(encoding="utf-8"))
        tensors = safetensors.torch.load_file(folder / FEATURES_FILE)
        if description["format"] != FORMAT:
            raise ValueError(f"its format is {description['format']!r}, but this version reads format {FORMAT}")
        thumbnails = tensors.pop(THUMBNAILS)
        features = {split_key(key): rows for key, rows in tensors.items()}
        captions, fingerprints = list(description["captions"]), dict(description["fingerprints"])
        if any(len(rows) != len(captions) for rows in [thumbnails, *features.values()]):
            raise ValueError("the numbers of captions and features differ")
        return Reference(captions, thumbnails, features, fingerprints, dict(description["recipe"]))
    except FileNotFoundError as error:
        raise ValueError(
            f"{folder} is not a reference: {Path(error.filename or FEATURES_FILE).name} is missing. Make one with "
            f"`diffusers-mdm evaluate reference`."
        ) from error
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"The reference {folder} cannot be used: {error}. Make it again.") from error


def split_key(key: str) -> tuple[str, int]:
    """Split the name of a tensor, such as "inception/64", into extractor and side."""
    name, _, side = key.rpartition("/")
    return name, int(side)
