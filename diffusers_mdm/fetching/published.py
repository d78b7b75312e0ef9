# SPDX-License-Identifier: Apache-2.0
"""The checkpoints that the authors of MDM have published, by the publisher's names."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

# The address that the README of apple/ml-mdm names.
PUBLISHER = "https://docs-assets.developer.apple.com/ml-research/models/mdm"
REPOSITORY = "https://github.com/apple/ml-mdm"
LICENCE_LINK = f"{REPOSITORY}/blob/main/LICENSE"
# The text encoder that the published models were trained with.
TEXT_ENCODER = "google/flan-t5-xl"
CONFIGS = Path(__file__).parent / "configs"


@dataclass(frozen=True)
class PublishedCheckpoint:
    """A checkpoint of the published implementation.

    Attributes:
        name: the publisher's name.
        sides: sides of its levels in pixels, innermost first.
        file: path of the file, relative to the publisher's address or a mirror.
        config_path: YAML file with the facts that the converter needs.
        about: one sentence about the model.
        size: bytes of the file; None if the publisher does not say.
        sha256: checksum of the file; None if the publisher does not say.
    """

    name: str
    sides: tuple[int, ...]
    file: str
    config_path: Path
    about: str
    size: int | None = None
    sha256: str | None = None


def _published(*sides: int) -> PublishedCheckpoint:
    name = f"flickr{sides[-1]}"
    levels = " and ".join(f"{side}" for side in sides)
    return PublishedCheckpoint(
        name,
        sides,
        f"{name}/vis_model.pth",
        CONFIGS / f"{name}.yaml",
        f"text to image at {levels} pixels, trained on 50 million pairs of texts and images from Flickr",
    )


# The publisher gives neither sizes nor checksums.
CHECKPOINTS = {one.name: one for one in (_published(64), _published(64, 256), _published(64, 256, 1024))}
