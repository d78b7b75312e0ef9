# SPDX-License-Identifier: Apache-2.0
"""What training asks of its data, wherever they are stored: the protocol that every kind of data fulfils.

A new kind is a `DataRecipe` with its own fields and an entry in `DATA_KINDS`, and a `DataSource` that reads what it
names and an entry in `SOURCES`. Nothing else in the package knows one kind from another.
"""

from collections.abc import Generator, Iterator
from typing import Protocol

from .batch import Batch
from .numbered import CaptionedImages
from .order import BatchOrder
from .samples import SampleDecoder
from .skip_budget import SkipBudget
from .text.features import TextEmbeddings


class TrainingImages(Protocol):
    """Captioned pictures or clips in the order of training.

    Attributes:
        skipped: those that this process met and could not use.
    """

    skipped: SkipBudget

    def batches(self, order: BatchOrder, start_step: int = 0, num_workers: int = 0) -> Generator[Batch, None, None]:
        """The micro-batches of one process from optimizer step `start_step` on, without end.

        Raises:
            ValueError: if too many pictures had to be skipped.
        """


class DataSource(Protocol):
    """The pictures or clips that a `DataRecipe` names. All methods raise ValueError where they do not fit it."""

    def training_images(self, decoder: SampleDecoder, embeddings: TextEmbeddings | None) -> TrainingImages:
        """What is trained on.

        Args:
            decoder: makes rows of a batch of what is stored.
            embeddings: features of the captions, where they were computed beforehand.
        """

    def held_out_images(self, decoder: SampleDecoder, embeddings: TextEmbeddings | None) -> CaptionedImages | None:
        """What the validation loss is measured on, by number; None without. Arguments as of `training_images`."""

    def training_captions(self) -> Iterator[str]:
        """All captions of what is trained on, in the order in which they are stored."""

    def held_out_captions(self) -> Iterator[str]:
        """The same of what is held out."""

    def class_names(self) -> tuple[str, ...]:
        """The names of the classes, in the order of their numbers; empty where they have numbers alone."""

    def num_samples(self) -> int | None:
        """How many samples are trained on; None where that is only known when all have been read."""

    def describe(self) -> list[str]:
        """How many samples there are, and what is left out and why, a line each; nothing is fetched for it."""
