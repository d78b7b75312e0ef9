# SPDX-License-Identifier: Apache-2.0
"""WebDataset shards as a data source: streamed for training, listed if held out."""

from collections.abc import Generator, Iterator, Sequence

from ...recipe.data import ShardData
from ..batch import Batch
from ..numbered import CaptionedImages
from ..order import BatchOrder
from ..reading import BatchReader, closed_at_exit, read_batches
from ..samples import SampleDecoder
from ..skip_budget import SkipBudget
from ..text.features import TextEmbeddings
from .files import describe_shards, list_shards
from .samples import ListedSamples, TarSamples, first_shard_captions, iterate_shard_captions
from .stream import ShardStream


class StreamedImages:
    """Images or clips that are streamed from shards; see `stream.py`.

    Args:
        recipe: how the parts of samples are read.
        shards: paths and URLs of tar files.
        decoder: decodes samples.
        embeddings: precomputed features of their captions.
    """

    def __init__(
        self,
        recipe: ShardData,
        shards: Sequence[str],
        decoder: SampleDecoder,
        embeddings: TextEmbeddings | None = None,
    ):
        self.recipe, self.shards, self.decoder, self.embeddings = recipe, shards, decoder, embeddings
        self.skipped = SkipBudget(recipe.max_skipped_images)

    def batches(self, order: BatchOrder, start_step: int = 0, num_workers: int = 0) -> Generator[Batch, None, None]:
        """Yield the micro-batches of this process from optimizer step `start_step` on, without end."""
        stream = ShardStream(self.shards, order, self.recipe.shuffle_buffer, self.skipped, num_workers)
        source = TarSamples(self.recipe)
        reader = BatchReader(source, self.decoder, order.seed, self.skipped.limit, self.embeddings)
        return closed_at_exit(read_batches(reader, stream.requests(start_step), num_workers, self.skipped))


class ShardSource:
    """The shards that a recipe names; see `DataSource`.

    Args:
        recipe: patterns of their names, and how the parts of samples are read.
    """

    def __init__(self, recipe: ShardData):
        self.recipe = recipe

    def training_images(self, decoder: SampleDecoder, embeddings: TextEmbeddings | None) -> StreamedImages:
        """Return a stream of the samples, shuffled in blocks."""
        return StreamedImages(self.recipe, list_shards(self.recipe.shards), decoder, embeddings)

    def held_out_images(self, decoder: SampleDecoder, embeddings: TextEmbeddings | None) -> CaptionedImages | None:
        """Return all samples of the held-out shards, if there are any."""
        if self.recipe.validation_shards is None:
            return None
        skipped = SkipBudget(self.recipe.max_skipped_images)
        listed = ListedSamples(self.recipe, list_shards(self.recipe.validation_shards), skipped)
        return CaptionedImages(listed, decoder, skipped, embeddings)

    def training_captions(self) -> Iterator[str]:
        """Yield the captions of all samples."""
        return iterate_shard_captions(self.recipe, list_shards(self.recipe.shards))

    def held_out_captions(self) -> Iterator[str]:
        """Yield the first caption of each held-out sample, if there are any."""
        shards = self.recipe.validation_shards
        return iter(()) if shards is None else first_shard_captions(self.recipe, list_shards(shards))

    def class_names(self) -> tuple[str, ...]:
        """Return no names: classes in shards are only numbers."""
        return ()

    def num_samples(self) -> None:
        """Return None: the number of samples in shards is unknown."""

    def describe(self) -> list[str]:
        """Describe how many shards there are."""
        return describe_shards(self.recipe.shards, self.recipe.validation_shards or ())
