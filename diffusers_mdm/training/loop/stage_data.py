# SPDX-License-Identifier: Apache-2.0
"""The data of a stage: its images or clips, the images to train on together with clips, and held-out data."""

import dataclasses
import itertools
import logging
from collections.abc import Iterator, Mapping

import torch

from ...pipelines.drawing.latent_space import scale_factor
from ...processes import wait_for_everyone
from ..data.batch import Batch
from ..data.micro_conditioning import micro_conditioning_defaults
from ..data.numbered import CaptionedImages, ShuffledImages
from ..data.sources import (
    TrainingImages,
    open_source,
    open_text_embeddings,
    open_training_images,
    open_validation_images,
    training_captions,
)
from ..data.subjects import open_subject_images
from ..data.text.features import TextEmbeddings
from ..data.text.features_writer import fingerprint
from ..loss.held_out import HeldOutSamples
from ..modules.classes import check_class_labels
from ..modules.text_encoder import frozen_text_encoder
from ..precision import DTYPES
from ..recipe.buckets import level_buckets
from ..recipe.clip_stages import data_of, joint_stage, sources, stage_frames, stage_level_configs
from ..recipe.data import DataRecipe
from ..recipe.recipe import Recipe
from ..recipe.stage import StageRecipe
from ..state.run import Run
from .validation_metrics import ValidationMetrics, open_validation_metrics

logger = logging.getLogger(__name__)

Embeddings = Mapping[str, TextEmbeddings]  # text features by folder


def open_embeddings(recipe: Recipe) -> Embeddings:
    """Open the precomputed text features of a run, by folder; none if it encodes captions itself.

    Raises:
        ValueError: if they were made for another model or sequence length.
    """
    opened = {}
    for data in sources(recipe):
        folder = data.embeddings_dir
        if folder is not None and folder not in opened:
            there = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, embeddings_dir=folder))
            embeddings = open_text_embeddings(there)
            assert embeddings is not None
            opened[folder] = embeddings
    return opened


def check_text_encoder(run: Run, embeddings: Embeddings) -> None:
    """Check that the text features were made with the text encoder with which the pipeline will be saved.

    The main process loads the encoder temporarily, in the dtype of the features.

    Raises:
        ValueError: if they differ, or there is no such encoder.
    """
    own = (
        run.recipe.data.embeddings_dir if run.options.pre_compute_text_embeddings else None
    )  # just written by the same encoder
    if run.accelerator.is_main_process:
        for features in (opened for folder, opened in embeddings.items() if folder != own):
            source, text_encoder, tokenizer = frozen_text_encoder(run.recipe, run.options.cache_dir)
            torch.nn.Module.to(text_encoder, DTYPES[features.index.dtype])
            features.check_encoder(source, fingerprint(text_encoder, tokenizer))
    wait_for_everyone(run.accelerator)


def report_data(run: Run) -> None:
    """Log, on the main process, how many images or clips there are for training, and what is left out and why."""
    for data in sources(run.recipe) if run.accelerator.is_main_process else ():
        for line in open_source(data).describe():
            logger.info("Data: %s.", line)


def all_training_captions(recipe: Recipe) -> Iterator[str]:
    """Yield the captions of all training data of a recipe."""
    return itertools.chain.from_iterable(training_captions(data) for data in sources(recipe))


@dataclasses.dataclass(frozen=True)
class StageData:
    """The opened data of a stage.

    Attributes:
        images: its images or clips.
        joint_images: images to train on together with the clips; None without.
        held_out: held-out data for the validation loss; None without.
        metrics: the metrics of samples generated for held-out captions; None without.
    """

    images: TrainingImages
    joint_images: TrainingImages | None = None
    held_out: HeldOutSamples[Batch] | None = None
    metrics: ValidationMetrics | None = None


def open_stage_data(run: Run, stage: StageRecipe, embeddings: Embeddings) -> StageData:
    """Open the data of a stage, and log what it is."""
    recipe, factor = run.recipe, scale_factor(run.vae)
    side, frames = stage_side(recipe, stage, factor), stage_frames(recipe, stage)
    clips = f", {frames} frames" if frames > 1 else ""
    logger.info("Stage %s: %d level(s), %d pixels%s.", stage.name, stage.levels, side, clips)
    images = open_stage_images(recipe, stage, embeddings, factor)
    joint_images = open_joint_images(recipe, stage, embeddings, factor)
    for opened in (images, joint_images):
        if isinstance(opened, ShuffledImages):
            opened.prefer(run.accelerator.device)
    return StageData(
        images,
        joint_images,
        open_held_out(run, stage, embeddings),
        open_validation_metrics(run, side),
    )


def open_held_out(run: Run, stage: StageRecipe, embeddings: Embeddings) -> HeldOutSamples[Batch] | None:
    """Open the held-out images or clips of a stage; None if there are none."""
    images = open_held_out_images(run.recipe, stage, embeddings, scale_factor(run.vae))
    if images is None:
        return None

    def load(records: list[int]) -> Batch:
        batch = images.load(records)
        check_class_labels(batch.class_labels, run.unet.config["num_class_embeds"])
        return batch

    return HeldOutSamples(load, len(images), run.recipe.validation.num_loss_images, run.options.seed)


def open_stage_images(recipe: Recipe, stage: StageRecipe, embeddings: Embeddings, factor: int = 1) -> TrainingImages:
    """Open the images or clips of a stage at the size of its outermost level; with prior preservation including class
    images.

    Args:
        recipe: recipe of the run.
        stage: one of its stages.
        embeddings: text features by folder.
        factor: pixels per latent along a side.
    """
    data = data_of(recipe, stage)
    side, micro, features = stage_side(recipe, stage, factor), _micro(recipe, stage), _features(data, embeddings)
    if recipe.prior_preservation is not None:
        return open_subject_images(recipe, side, micro, features)
    buckets = level_buckets(recipe, stage.levels, factor)
    return open_training_images(data, side, micro, features, stage_frames(recipe, stage), buckets)


def open_joint_images(
    recipe: Recipe, stage: StageRecipe, embeddings: Embeddings, factor: int = 1
) -> TrainingImages | None:
    """Open the `joint_images` of a stage, from `images` or single frames of clips; None without."""
    joint_images = joint_stage(recipe, stage)
    if joint_images is None:
        return None
    return open_stage_images(recipe, joint_images, embeddings, factor)


def open_held_out_images(
    recipe: Recipe, stage: StageRecipe, embeddings: Embeddings, factor: int = 1
) -> CaptionedImages | None:
    """Open the held-out data of a stage; None if there is none."""
    data = data_of(recipe, stage)
    side, micro, features = stage_side(recipe, stage, factor), _micro(recipe, stage), _features(data, embeddings)
    buckets = level_buckets(recipe, stage.levels, factor)
    return open_validation_images(data, side, micro, features, stage_frames(recipe, stage), buckets)


def stage_side(recipe: Recipe, stage: StageRecipe, factor: int = 1) -> int:
    """Return the side in pixels of a stage's data, that of its outermost level; `factor` is pixels per latent."""
    return recipe.sides[stage.levels - 1] * factor


def _micro(recipe: Recipe, stage: StageRecipe) -> dict[str, float]:
    return micro_conditioning_defaults(stage_level_configs(recipe, stage))


def _features(data: DataRecipe, embeddings: Embeddings) -> TextEmbeddings | None:
    return None if data.embeddings_dir is None else embeddings[data.embeddings_dir]
