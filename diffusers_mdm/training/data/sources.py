# SPDX-License-Identifier: Apache-2.0
"""What a recipe trains on: the one place that knows all kinds of data sets."""

from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from ..recipe.data import DataRecipe
from ..recipe.recipe import Recipe
from .batch import Batch
from .images import square_pixels, to_unit_range
from .numbered import CaptionedImages, ShuffledImages
from .order import BatchOrder
from .reading import BatchReader, closed_at_exit, read_batches
from .samples import SampleDecoder, sample_decoder
from .shards.files import describe_shards, list_shards
from .shards.samples import ListedSamples, TarSamples, iterate_shard_captions
from .shards.stream import ShardStream
from .skip_budget import SkipBudget
from .tables.folders import open_folder
from .tables.splits import DatasetRows, iterate_captions, load_captioned_split, load_training_rows
from .text.features import TextEmbeddings

__all__ = [
    "CaptionedImages",
    "TrainingImages",
    "describe_data",
    "load_captioned_split",
    "open_text_embeddings",
    "open_training_images",
    "open_validation_images",
    "square_pixels",
    "to_unit_range",
    "training_captions",
    "validation_captions",
]


class TrainingImages(Protocol):
    """Captioned pictures in the order of training.

    Attributes:
        skipped: those that this process met and could not use.
    """

    skipped: SkipBudget

    def batches(self, order: BatchOrder, start_step: int = 0, num_workers: int = 0) -> Generator[Batch, None, None]:
        """The micro-batches of one process from optimizer step `start_step` on, without end.

        Raises:
            ValueError: if too many pictures had to be skipped.
        """


class StreamedImages:
    """Pictures that are streamed from WebDataset shards; see `webdataset_stream`."""

    def __init__(
        self,
        recipe: DataRecipe,
        shards: Sequence[str],
        decoder: SampleDecoder,
        skipped: SkipBudget,
        embeddings: TextEmbeddings | None = None,
    ):
        self.recipe, self.shards, self.decoder = recipe, shards, decoder
        self.skipped, self.embeddings = skipped, embeddings

    def batches(self, order: BatchOrder, start_step: int = 0, num_workers: int = 0) -> Generator[Batch, None, None]:
        """The micro-batches of one process from optimizer step `start_step` on, without end."""
        stream = ShardStream(self.shards, order, self.recipe.shuffle_buffer, self.skipped, num_workers)
        source = TarSamples(self.recipe)
        reader = BatchReader(source, self.decoder, order.seed, self.skipped.limit, self.embeddings)
        return closed_at_exit(read_batches(reader, stream.requests(start_step), num_workers, self.skipped))


def open_training_images(
    recipe: DataRecipe,
    side: int,
    micro_conditioning: Mapping[str, float] | None = None,
    embeddings: TextEmbeddings | None = None,
    num_frames: int = 1,
) -> TrainingImages:
    """The pictures or clips that a stage trains on.

    Args:
        recipe: where they are, and what is done with them.
        side: of the stage's outermost level, in pixels.
        micro_conditioning: names that the model is conditioned on, with their defaults (see
            `micro_conditioning_defaults`); None for none.
        embeddings: text features of the captions; None opens the recipe's `embeddings_dir`, if it has one.
        num_frames: F, for clips (`recipe.video_column`): rows have pixels `(3, F, S, S)`. With 1 they are pictures,
            one frame of each clip.

    Raises:
        ValueError: if something in the recipe does not fit the data; the message says what there is.
    """
    decoder = sample_decoder(recipe, side, micro_conditioning or {}, num_frames)
    skipped = SkipBudget(recipe.max_skipped_images)
    if embeddings is None and recipe.embeddings_dir is not None:
        embeddings = TextEmbeddings(recipe.embeddings_dir)
    if recipe.shards is not None:
        return StreamedImages(recipe, list_shards(recipe.shards), decoder, skipped, embeddings)
    rows = load_training_rows(recipe)
    if embeddings is not None:
        embeddings.check_captions(iterate_captions(rows, recipe))
    source = DatasetRows(rows, recipe, recipe.train_split, list(decoder.micro_conditioning))
    return ShuffledImages(CaptionedImages(source, decoder, skipped, embeddings))


def open_validation_images(
    recipe: DataRecipe,
    side: int,
    micro_conditioning: Mapping[str, float] | None = None,
    embeddings: TextEmbeddings | None = None,
    num_frames: int = 1,
) -> CaptionedImages | None:
    """The held-out pictures or clips, cropped in the centre and by number; None if the recipe has none.

    Nothing is random: of a clip the middle frames are taken. Arguments and errors are those of `open_training_images`.
    """
    if not recipe.has_validation:
        return None
    decoder = sample_decoder(recipe, side, micro_conditioning or {}, num_frames).centered()
    skipped = SkipBudget(recipe.max_skipped_images)
    if embeddings is None and recipe.embeddings_dir is not None:
        embeddings = TextEmbeddings(recipe.embeddings_dir)
    if recipe.validation_shards is not None:
        listed = ListedSamples(recipe, list_shards(recipe.validation_shards), skipped)
        return CaptionedImages(listed, decoder, skipped, embeddings)
    split = str(recipe.validation_split)
    rows = load_captioned_split(recipe, split)
    if embeddings is not None:
        embeddings.check_captions(iterate_captions(rows, recipe))
    source = DatasetRows(rows, recipe, split, list(decoder.micro_conditioning))
    return CaptionedImages(source, decoder, skipped, embeddings)


def open_text_embeddings(recipe: Recipe) -> TextEmbeddings | None:
    """The text features that a run reads, checked against its model; None if it encodes the captions itself.

    Raises:
        ValueError: if they were made for another model or cut elsewhere.
    """
    if recipe.data.embeddings_dir is None:
        return None
    width = recipe.model.get("encoder_hid_dim") or recipe.model.get("cross_attention_dim")
    return TextEmbeddings(recipe.data.embeddings_dir, width, recipe.max_sequence_length)


def describe_data(recipe: DataRecipe) -> list[str]:
    """How many samples there are, and what is left out and why, a line each; nothing is fetched for it.

    Raises:
        ValueError: if something local is broken.
    """
    if recipe.shards is not None:
        return describe_shards(recipe.shards, recipe.validation_shards or ())
    folder = open_folder(Path(str(recipe.path)), recipe) if Path(str(recipe.path)).is_dir() else None
    if folder is None:
        return [f"{recipe.path}: a data set that is opened when training starts"]
    found, *left_out = folder.describe()
    return [f"{recipe.path}: {found}", *left_out]


def training_captions(recipe: DataRecipe) -> Iterator[str]:
    """All captions of the training data, in the order in which it is stored.

    Raises:
        ValueError: as `open_training_images`.
    """
    if recipe.shards is not None:
        return iterate_shard_captions(recipe, list_shards(recipe.shards))
    return iterate_captions(load_training_rows(recipe), recipe)


def validation_captions(recipe: DataRecipe) -> Iterator[str]:
    """The same of the held-out pictures; none if the recipe has none."""
    if recipe.validation_shards is not None:
        return iterate_shard_captions(recipe, list_shards(recipe.validation_shards))
    if recipe.validation_split is not None:
        return iterate_captions(load_captioned_split(recipe, recipe.validation_split), recipe)
    return iter(())
