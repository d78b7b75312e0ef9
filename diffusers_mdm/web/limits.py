# SPDX-License-Identifier: Apache-2.0
"""What one visitor of the page may ask for."""

from __future__ import annotations

from dataclasses import dataclass, fields

from diffusers_mdm.checked_values import check_whole_number

HIGHEST = 1_000_000


@dataclass(frozen=True)
class Limits:
    """The most that the server computes for one drawing, and how many drawings can wait.

    Attributes:
        steps: denoising steps.
        side: pixels of the larger side of an image; levels beyond it are not offered.
        images: images or clips per drawing.
        prompt_length: characters of the prompt, and of the negative prompt.
        waiting: drawings in the queue; further ones are turned away.
        upload_megabytes: size of an uploaded image file.
        upload_megapixels: pixels of an uploaded image, in millions.
        history: drawings that are kept for each visitor.
    """

    steps: int = 250
    side: int = 1024
    images: int = 4
    prompt_length: int = 500
    waiting: int = 16
    upload_megabytes: int = 20
    upload_megapixels: int = 40
    history: int = 12

    def __post_init__(self) -> None:
        for field in fields(self):
            check_whole_number(getattr(self, field.name), f"The limit `{field.name}`", 1, HIGHEST)
