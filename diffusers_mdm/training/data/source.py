# SPDX-License-Identifier: Apache-2.0
"""The protocol that every data source implements, independent of how the data are stored.

A new kind of data needs a `DataRecipe` with its own fields and an entry in `DATA_KINDS`, and a `DataSource` that reads
it and an entry in `SOURCES`. No other code in the package distinguishes the kinds.
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
    """Captioned images or clips in the order of training.

    Attributes:
        skipped: counts the samples that this process encountered and could not use.
    """

    skipped: SkipBudget

    def batches(self, order: BatchOrder, start_step: int = 0, num_workers: int = 0) -> Generator[Batch, None, None]:
        """Yield the micro-batches of this process from optimizer step `start_step` on, without end.

        Raises:
            ValueError: if too many samples had to be skipped.
        """


class DataSource(Protocol):
    """The images or clips that a `DataRecipe` describes. All methods raise a ValueError if the data do not match
    it.
    """

    def training_images(self, decoder: SampleDecoder, embeddings: TextEmbeddings | None) -> TrainingImages:
        """Return the training data.

        Args:
            decoder: decodes the stored samples.
            embeddings: precomputed features of the captions, if there are any.
        """

    def held_out_images(self, decoder: SampleDecoder, embeddings: TextEmbeddings | None) -> CaptionedImages | None:
        """Return the held-out data for the validation loss, None if there is none. Arguments as for
        `training_images`.
        """

    def training_captions(self) -> Iterator[str]:
        """Yield all captions of the training data, in the order in which they are stored, those of other columns
        (`other_caption_columns`) after them.
        """

    def held_out_captions(self) -> Iterator[str]:
        """Yield one caption for each held-out sample in order, of several the first."""

    def class_names(self) -> tuple[str, ...]:
        """Return the class names in the order of their numbers; empty if classes have only numbers."""

    def num_samples(self) -> int | None:
        """Return the number of training samples; None if that is only known after reading all of them."""

    def describe(self) -> list[str]:
        """Describe in one line each how many samples there are, and what is left out and why; downloads nothing."""
