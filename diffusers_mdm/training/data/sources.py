# SPDX-License-Identifier: Apache-2.0
"""The kinds of data that can be trained on, and opening the data that a recipe names."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ..recipe.clip_rows import sources
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

# By the kind of the recipe. A new kind of data has one line here, and one in `DATA_KINDS` (training/recipe/data.py).
SOURCES: dict[type[DataRecipe], Callable[[Any], DataSource]] = {
    TableData: TableSource,
    ShardData: ShardSource,
}


def open_source(recipe: DataRecipe) -> DataSource:
    """What a recipe names, to be asked for its pictures, captions and so on; nothing is read yet."""
    return SOURCES[type(recipe)](recipe)


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
    return open_source(recipe).training_images(decoder, _features(recipe, embeddings))


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
    return open_source(recipe).held_out_images(decoder, _features(recipe, embeddings))


def _features(recipe: DataRecipe, embeddings: TextEmbeddings | None) -> TextEmbeddings | None:
    if embeddings is None and recipe.embeddings_dir is not None:
        return TextEmbeddings(recipe.embeddings_dir)
    return embeddings


def open_text_embeddings(recipe: Recipe) -> TextEmbeddings | None:
    """The text features that a run reads, checked against its model; None if it encodes the captions itself.

    Raises:
        ValueError: if they were made for another model or cut elsewhere.
    """
    if recipe.data.embeddings_dir is None:
        return None
    width = recipe.model.get("encoder_hid_dim") or recipe.model.get("cross_attention_dim")
    return TextEmbeddings(recipe.data.embeddings_dir, width, recipe.max_sequence_length)


def training_captions(recipe: DataRecipe) -> Iterator[str]:
    """All captions of the training data, in the order in which it is stored.

    Raises:
        ValueError: as `open_training_images`.
    """
    return open_source(recipe).training_captions()


def validation_captions(recipe: DataRecipe) -> Iterator[str]:
    """The same of the held-out pictures; none if the recipe has none."""
    return open_source(recipe).held_out_captions()


def texts_of(recipe: Recipe) -> Iterator[str]:
    """All texts that a run encodes: captions of training and held-out pictures, of the class, and what it draws."""
    for data in sources(recipe):
        yield from training_captions(data)
        yield from validation_captions(data)
    yield from recipe.validation.prompts
    if recipe.prior_preservation is not None:
        yield recipe.prior_preservation.class_prompt
