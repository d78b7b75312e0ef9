# SPDX-License-Identifier: Apache-2.0
"""Samples generated during training: images or clips of the validation prompts at every level, in one labelled
grid.
"""

import contextlib
import dataclasses
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from PIL import Image

from ...pipelines.image_grid import make_grid
from ...pipelines.pipeline_class_base import ClassPipelineBase
from ...pipelines.pipeline_mdm_unconditional import MDMUnconditionalPipeline
from ...pipelines.pipeline_mdm_video import MDMVideoPipeline
from ...pyramid import Size
from ..data.text.features import TextEmbeddings
from ..modules.classes import TrainedPipeline, class_number, draws_classes_alone, is_unconditional
from ..recipe.buckets import most_square
from ..recipe.recipe import Recipe, ValidationRecipe
from ..state.averages import averaged_weights
from ..state.run import Run
from ..state.sharding import plain_copy
from .moving_grids import ANIMATION_SUFFIX, clip_animation, clip_grid, film_strip, frames_of, save_animation
from .trackers import send_image, send_images

logger = logging.getLogger(__name__)

SAMPLES_FOLDER = "samples"
TRACKER_NAME = "validation"
# Limits of one pipeline call: number of images, and total pixels of their outermost level.
MAX_BATCH, MAX_BATCH_PIXELS = 16, 2**20


class PromptFeatures(Protocol):
    """Features of encoded texts that can be looked up by text, such as `TextEmbeddings`."""

    def __contains__(self, caption: str) -> bool:
        """Return whether the features of a text are available."""

    def look_up(self, captions: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return features `(B, L, D)`, zero at padding tokens, and their mask `(B, L)`."""


def draw_validation_grid(run: Run, features: PromptFeatures | None = None) -> Path | None:
    """Generate samples of the validation prompts with the averaged weights, save the grid and send it to the trackers.

    If weights are sharded, every process must call this; the main one generates. The noise is the same every time, so
    that grids of different steps can be compared. A run with precomputed text features has no text encoder; it
    generates samples if `features` (by default the run's own embeddings) contain the prompts, and otherwise logs why
    it does not.

    Returns:
        `samples/step-<n>.png` in the output folder, or None if nothing was generated. For clips it shows the frames
        side by side, and `step-<n>.webp` is animated.
    """
    settings, is_main = validation_settings(run.recipe), run.accelerator.is_main_process
    if not settings.drawn_prompts or not (is_main or run.is_sharded):
        return None
    features = prompt_features(run, features)
    reason = why_not_drawn(run, features)
    if reason is not None:
        if is_main:
            logger.info("No validation samples: %s", reason)
        return None
    with validation_pipeline(run) as pipeline:
        if pipeline is None:
            return None
        sizes = pipeline.aspect_ratio_buckets if run.recipe.data.has_buckets else ()
        size = most_square(sizes) if sizes else None
        pyramid = draw_prompts(pipeline, settings, run.recipe.max_sequence_length, features, size)
    labels: Sequence[str] = settings.drawn_prompts
    if is_unconditional(run.recipe):
        labels = [f"seed {number}" for number in range(len(labels))]
    if not isinstance(pipeline, MDMVideoPipeline):
        return _keep(run, make_grid(pyramid, labels), pyramid)
    moving = clip_animation(pyramid, labels) if frames_of(pyramid) > 1 else []
    strips = [[film_strip(clip) for clip in level] for level in pyramid]
    return _keep(run, clip_grid(pyramid, labels), strips, moving)


def validation_settings(recipe: Recipe) -> ValidationRecipe:
    """Return the settings of the samples; those of an unconditional model are of one empty prompt.

    A model for super-resolution has no samples, whatever its conditions: they would need small images.
    """
    settings = recipe.validation
    draws = is_unconditional(recipe) and recipe.super_resolution is None
    return dataclasses.replace(settings, prompts=("",)) if draws else settings


def prompt_features(run: Run, features: PromptFeatures | None = None) -> PromptFeatures | None:
    """Return where a run without a text encoder finds features of prompts; None if it has an encoder, or nothing."""
    if run.text_encoder is not None:
        return None
    if features is None and run.recipe.data.embeddings_dir is not None:
        return TextEmbeddings(run.recipe.data.embeddings_dir)
    return features


@contextlib.contextmanager
def validation_pipeline(run: Run) -> Iterator[TrainedPipeline | None]:
    """Yield the run's pipeline with the averaged weights, ready to draw; None on all but the main process.

    If weights are sharded, every process must enter this. Randomness inside does not change that of training.
    """
    with averaged_weights(run), torch.random.fork_rng(devices=[]), _eagerly(run):
        pipeline = _whole_pipeline(run)
        if not run.accelerator.is_main_process:
            yield None
            return
        with run.at_hand(*run.frozen_modules), run.accelerator.autocast():
            yield pipeline


def grid_path(run: Run) -> Path:
    """Return the path of the sample grid of the run's current step."""
    return run.options.output_dir / SAMPLES_FOLDER / f"step-{run.progress.total_steps:07d}.png"


def _keep(
    run: Run,
    grid: Image.Image,
    pyramid: Sequence[Sequence[Image.Image]],
    moving: Sequence[Image.Image] = (),
) -> Path | None:
    """Save a grid and its animation, and send it and the images of every level, at their own size, to the trackers; if
    the disk is full, log that and continue.
    """
    path = grid_path(run)
    beside = path.with_name(f".unfinished-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if moving:
            save_animation(moving, path.with_suffix(ANIMATION_SUFFIX))
        # The grid is written last and in one step: if it exists, nothing is missing.
        grid.save(beside)
        os.replace(beside, path)
        send_image(run.accelerator, TRACKER_NAME, grid, run.progress.total_steps)
        for level, images in enumerate(pyramid):
            name = f"{TRACKER_NAME}/level_{level}_{images[0].height}px"
            send_images(run.accelerator, name, images, run.progress.total_steps)
    except OSError as error:
        logger.warning("The validation samples could not be written (%s); training continues.", error)
        return None
    return path


def check_prompts(run: Run) -> None:
    """Check, before training, that the validation prompts of a class-conditional model are classes.

    Raises:
        ValueError: names the prompt and similar classes.
    """
    pipeline = run.pipeline()
    if draws_classes_alone(run.recipe) and isinstance(pipeline, ClassPipelineBase):
        for prompt in run.recipe.validation.prompts:
            try:
                class_number(pipeline, prompt)
            except ValueError as error:
                raise ValueError(
                    f"`validation.prompts` of a class-conditional model must be class names or numbers: {error}"
                ) from error


def why_not_drawn(run: Run, features: PromptFeatures | None, settings: ValidationRecipe | None = None) -> str | None:
    """Return why no samples of the prompts of `settings` (by default the recipe's) can be generated; None if they
    can.
    """
    settings = run.recipe.validation if settings is None else settings
    if draws_classes_alone(run.recipe) or is_unconditional(run.recipe):
        return None
    if run.unet.config["num_class_embeds"] is not None:
        return "the model takes a text and a class together; generate images with the finished pipeline instead."
    if run.text_encoder is not None and run.tokenizer is not None:
        return None
    needed = [*settings.prompts, *([""] if settings.guidance_scale > 1 else [])]
    missing = [text for text in needed if features is None or text not in features]
    if not missing:
        return None
    return (
        f"captions are precomputed, so there is no text encoder in memory, and the features of {missing[0]!r} were "
        f"not computed with them; generate images with the finished pipeline instead."
    )


def draw_prompts(
    pipeline: TrainedPipeline,
    settings: ValidationRecipe,
    max_sequence_length: int = 128,
    features: PromptFeatures | None = None,
    size: Size | None = None,
) -> list[list[Any]]:
    """Generate `num_validation_images` images or clips per prompt; number i starts from noise with seed i.

    Args:
        pipeline: the pipeline; its text encoder may have any dtype. For a class-conditional one, prompts are class
            names or numbers, and for an unconditional one only their number counts.
        settings: prompts, steps and guidance.
        max_sequence_length: prompts are truncated after this many tokens; 0 for a model without text.
        features: features of the prompts and, for guidance, of the empty text, used instead of the text encoder.
        size: height and width in pixels; None for the pipeline's own.

    Returns:
        For each level, innermost first, all images (for clips, lists of frames), those of one prompt together.
    """
    texts = list(settings.drawn_prompts)
    unet = cast(Any, pipeline.unet)
    num_pixels = pipeline.image_sides[-1] ** 2 * unet.level_frames[-1]
    pipeline.set_progress_bar_config(disable=True)
    pyramid: list[list[Any]] = []
    # Padding in given features would be attended to as text, so different texts do not share a call then.
    for start, part in _batches(texts, num_pixels, mixed=features is None):
        drawn = cast(Any, pipeline)(
            **_inputs(pipeline, part, features, settings.guidance_scale),
            num_inference_steps=settings.num_inference_steps,
            generator=[torch.Generator().manual_seed(start + index) for index in range(len(part))],
            output_pyramid=True,
            **({} if size is None else {"height": size[0], "width": size[1]}),
            **({"max_sequence_length": max_sequence_length} if max_sequence_length else {}),  # 0: a model without text
        )
        levels = drawn.pyramid
        pyramid = [before + level for before, level in zip(pyramid or [[] for _ in levels], levels, strict=True)]
    return pyramid


def _batches(texts: list[str], num_pixels: int, mixed: bool) -> list[tuple[int, list[str]]]:
    """Split texts, in order, into calls that fit into memory; yield each with the index of its first text.

    `num_pixels` is the number of pixels of an image, or of all frames of a clip.
    """
    size = max(1, min(MAX_BATCH, MAX_BATCH_PIXELS // num_pixels))
    batches: list[tuple[int, list[str]]] = []
    for place, text in enumerate(texts):
        last = batches[-1][1] if batches else []
        if last and len(last) < size and (mixed or last[0] == text):
            last.append(text)
        else:
            batches.append((place, [text]))
    return batches


def _inputs(
    pipeline: TrainedPipeline, texts: list[str], features: PromptFeatures | None, guidance_scale: float
) -> dict[str, Any]:
    """Return the pipeline's arguments for classes, for texts, or for features of texts and of the empty text, with
    guidance; those for a number of images without guidance.
    """
    config = cast(Any, pipeline.unet).config
    if isinstance(pipeline, MDMUnconditionalPipeline):
        return {"batch_size": len(texts)}
    if config["cross_attention_dim"] is None and config["num_class_embeds"] is None:
        return {"num_videos_per_prompt": len(texts)}
    guidance = {"guidance_scale": guidance_scale}
    if config["cross_attention_dim"] is None and isinstance(pipeline, ClassPipelineBase):
        return {"class_labels": [class_number(pipeline, text) for text in texts], **guidance}
    if features is None:
        return {"prompt": texts, **guidance}
    guided = guidance_scale > 1
    embeds, mask = features.look_up([*texts, *[""] * len(texts)] if guided else texts)
    inputs = {"prompt_embeds": embeds[: len(texts)], "prompt_attention_mask": mask[: len(texts)], **guidance}
    if guided:
        inputs |= {
            "negative_prompt_embeds": embeds[len(texts) :],
            "negative_prompt_attention_mask": mask[len(texts) :],
        }
    return inputs


def _whole_pipeline(run: Run) -> TrainedPipeline:
    """Return the run's pipeline; if weights are sharded, with gathered copies on the run's device."""
    pipeline = run.pipeline()
    if run.is_sharded:
        copies = {name: plain_copy(module) for name, module in run.trained_modules.items()}
        pipeline.register_modules(**{name: copy.to(run.accelerator.device) for name, copy in copies.items()})
    return pipeline


def _eagerly(run: Run) -> contextlib.AbstractContextManager[Any]:
    """Disable compilation of the U-Net inside the block, which would recompile for the shapes of a few samples."""
    return torch.compiler.set_stance("force_eager") if run.options.torch_compile else contextlib.nullcontext()
