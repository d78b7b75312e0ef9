# SPDX-License-Identifier: Apache-2.0
"""The data sources by kind of data, and opening the data of a recipe."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ...pyramid import Size
from ..recipe.clip_stages import sources
from ..recipe.data import DataRecipe, ShardData, TableData
from ..recipe.recipe import Recipe
from .numbered import CaptionedImages
from .samples import sample_decoder
from .shards.source import ShardSource
from .source import DataSource, TrainingImages
from .tables.source import TableSource
from .text.features import TextEmbeddings

__all__ = [
    "SOURCES",
    "CaptionedImages",
    "DataSource",
    "TrainingImages",
    "open_source",
    "open_text_embeddings",
    "open_training_images",
    "open_validation_images",
    "training_captions",
    "validation_captions",
]

# By the class of the recipe. A new kind of data needs a line here, and one in `DATA_KINDS` (training/recipe/data.py).
SOURCES: dict[type[DataRecipe], Callable[[Any], DataSource]] = {
    TableData: TableSource,
    ShardData: ShardSource,
}


def open_source(recipe: DataRecipe) -> DataSource:
    """Return the data source for a recipe; nothing is read yet."""
    return SOURCES[type(recipe)](recipe)


def open_training_images(
    recipe: DataRecipe,
    side: int,
    micro_conditioning: Mapping[str, float] | None = None,
    embeddings: TextEmbeddings | None = None,
    num_frames: int = 1,
    buckets: Sequence[Size] = (),
) -> TrainingImages:
    """Open the images or clips that a stage trains on.

    Args:
        recipe: where the data are, and how they are processed.
        side: side of the stage's outermost level, in pixels.
        micro_conditioning: names that the model is conditioned on, with their defaults (see
            `micro_conditioning_defaults`); None for none.
        embeddings: precomputed features of the captions; None opens the recipe's `embeddings_dir`, if it has one.
        num_frames: F, for clips (`recipe.video_column`): pixels are then `(3, F, S, S)`. With 1, one frame of each
            clip is used as an image.
        buckets: sizes (height, width) to which images are cropped instead of squares.

    Raises:
        ValueError: if the recipe does not match the data; the message says what there is.
    """
    decoder = sample_decoder(recipe, side, micro_conditioning or {}, num_frames, buckets)
    return open_source(recipe).training_images(decoder, _features(recipe, embeddings))


def open_validation_images(
    recipe: DataRecipe,
    side: int,
    micro_conditioning: Mapping[str, float] | None = None,
    embeddings: TextEmbeddings | None = None,
    num_frames: int = 1,
    buckets: Sequence[Size] = (),
) -> CaptionedImages | None:
    """Open the held-out images or clips, cropped in the centre; None if the recipe has none.

    Nothing is random, and all have one size, with buckets the one that is closest to a square: of clips the middle
    frames are taken, of several captions the first of the main column.
    Arguments and errors are those of `open_training_images`.
    """
    if not recipe.has_validation:
        return None
    decoder = sample_decoder(recipe, side, micro_conditioning or {}, num_frames, buckets).centered()
    return open_source(recipe.with_main_captions()).held_out_images(decoder, _features(recipe, embeddings))


def _features(recipe: DataRecipe, embeddings: TextEmbeddings | None) -> TextEmbeddings | None:
    if embeddings is None and recipe.embeddings_dir is not None:
        return TextEmbeddings(recipe.embeddings_dir)
    return embeddings


def open_text_embeddings(recipe: Recipe) -> TextEmbeddings | None:
    """Open the precomputed text features of a run, checked against its model; None if it encodes captions itself.

    Raises:
        ValueError: if they were made for another model or another sequence length.
    """
    if recipe.data.embeddings_dir is None:
        return None
    width = recipe.model.get("encoder_hid_dim") or recipe.model.get("cross_attention_dim")
    return TextEmbeddings(recipe.data.embeddings_dir, width, recipe.max_sequence_length)


def training_captions(recipe: DataRecipe) -> Iterator[str]:
    """Yield all captions of the training data, in the order in which they are stored.

    Raises:
        ValueError: as for `open_training_images`.
    """
    return open_source(recipe).training_captions()


def validation_captions(recipe: DataRecipe) -> Iterator[str]:
    """Yield the main caption of each held-out sample, the first of several; none if there is no held-out data."""
    return open_source(recipe.with_main_captions()).held_out_captions()


def texts_of(recipe: Recipe) -> Iterator[str]:
    """Yield all texts that a run encodes: captions of training and held-out data and of class images, and its
    prompts.
    """
    for data in sources(recipe):
        yield from training_captions(data)
        yield from validation_captions(data)
    yield from recipe.validation.prompts
    if recipe.prior_preservation is not None:
        yield recipe.prior_preservation.class_prompt
