# SPDX-License-Identifier: Apache-2.0
"""A folder or a data set on the Hub as a data source."""

from collections.abc import Iterator
from pathlib import Path

import datasets

from ...recipe.data import TableData
from ..numbered import CaptionedImages, ShuffledImages
from ..samples import SampleDecoder
from ..skip_budget import SkipBudget
from ..text.features import TextEmbeddings
from .folders import open_folder
from .splits import SplitRecords, first_captions, iterate_captions, load_captioned_split


class TableSource:
    """The splits that a recipe names; see `DataSource`.

    Args:
        recipe: the folder or data set, and its splits and columns.
    """

    def __init__(self, recipe: TableData):
        self.recipe = recipe

    def training_images(self, decoder: SampleDecoder, embeddings: TextEmbeddings | None) -> ShuffledImages:
        """Return the training split, shuffled anew in every epoch."""
        records = self.training_records()
        if embeddings is not None:
            embeddings.check_captions(iterate_captions(records, self.recipe))
        return ShuffledImages(self._images(records, self.recipe.train_split, decoder, embeddings))

    def held_out_images(self, decoder: SampleDecoder, embeddings: TextEmbeddings | None) -> CaptionedImages | None:
        """Return the validation split, if there is one."""
        split = self.recipe.validation_split
        if split is None:
            return None
        records = load_captioned_split(self.recipe, split)
        if embeddings is not None:
            embeddings.check_captions(first_captions(records, self.recipe))
        return self._images(records, split, decoder, embeddings)

    def _images(
        self, records: datasets.Dataset, split: str, decoder: SampleDecoder, embeddings: TextEmbeddings | None
    ) -> CaptionedImages:
        source = SplitRecords(records, self.recipe, split, list(decoder.micro_conditioning))
        return CaptionedImages(source, decoder, SkipBudget(self.recipe.max_skipped_images), embeddings)

    def training_records(self) -> datasets.Dataset:
        """Return the training split, or its first `max_train_samples` records."""
        records = load_captioned_split(self.recipe, self.recipe.train_split)
        limit = self.recipe.max_train_samples
        return records if limit is None else records.select(range(min(limit, len(records))))

    def training_captions(self) -> Iterator[str]:
        """Yield the captions of the training split."""
        return iterate_captions(self.training_records(), self.recipe)

    def held_out_captions(self) -> Iterator[str]:
        """Yield the first caption of each record of the validation split, if there is one."""
        split = self.recipe.validation_split
        return iter(()) if split is None else first_captions(load_captioned_split(self.recipe, split), self.recipe)

    def class_names(self) -> tuple[str, ...]:
        """Return the names of a `ClassLabel` column; columns of numbers have none."""
        column = self.recipe.label_column
        if column is None:
            return ()
        feature = load_captioned_split(self.recipe, self.recipe.train_split).features[column]
        return tuple(feature.names) if isinstance(feature, datasets.ClassLabel) else ()

    def num_samples(self) -> int:
        """Return the number of records of the training split, up to `max_train_samples`."""
        return len(self.training_records())

    def describe(self) -> list[str]:
        """Describe the splits of a local folder, and what is left out; data sets on the Hub are not opened."""
        path = Path(self.recipe.path)
        folder = open_folder(path, self.recipe) if path.is_dir() else None
        if folder is None:
            return [f"{path}: a data set that is opened when training starts"]
        found, *left_out = folder.describe()
        return [f"{path}: {found}", *left_out]
