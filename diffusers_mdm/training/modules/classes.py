# SPDX-License-Identifier: Apache-2.0
"""What models are conditioned on: the pipeline class, and for classes their names and checks of labels."""

import logging
from collections.abc import Mapping

import torch

from ...pipelines.pipeline_class_base import ClassPipelineBase
from ...pipelines.pipeline_mdm import MDMPipeline
from ...pipelines.pipeline_mdm_class_conditional import MDMClassConditionalPipeline
from ...pipelines.pipeline_mdm_super_resolution import MDMSuperResolutionPipeline
from ...pipelines.pipeline_mdm_unconditional import MDMUnconditionalPipeline
from ...pipelines.pipeline_mdm_video import MDMVideoPipeline
from ..recipe.clip_stages import has_clips
from ..recipe.recipe import Recipe

logger = logging.getLogger(__name__)

TrainedPipeline = (
    MDMPipeline
    | MDMClassConditionalPipeline
    | MDMUnconditionalPipeline
    | MDMVideoPipeline
    | MDMSuperResolutionPipeline
)


def num_class_embeds(recipe: Recipe) -> int | None:
    """Return the number of class embeddings, the last of which stands for "no class"; None for a model without
    classes.
    """
    return recipe.model.get("num_class_embeds")


def sees_text(recipe: Recipe) -> bool:
    """Return whether the model is conditioned on text."""
    return recipe.model.get("cross_attention_dim") is not None


def draws_classes_alone(recipe: Recipe) -> bool:
    """Return whether the model is conditioned on a class, but not on text."""
    return num_class_embeds(recipe) is not None and not sees_text(recipe)


def is_unconditional(recipe: Recipe) -> bool:
    """Return whether the model is conditioned on neither text nor classes."""
    return num_class_embeds(recipe) is None and not sees_text(recipe)


def pipeline_class(recipe: Recipe) -> type[TrainedPipeline]:
    """Return the class of the pipeline that a recipe trains, depending on whether the model enlarges images or has
    frames, and on its conditions.
    """
    if recipe.super_resolution is not None:
        return MDMSuperResolutionPipeline
    if has_clips(recipe):
        return MDMVideoPipeline
    if is_unconditional(recipe):
        return MDMUnconditionalPipeline
    return MDMPipeline if num_class_embeds(recipe) is None else MDMClassConditionalPipeline


def keep_class_names(saved: Mapping[int, str], found: Mapping[int, str]) -> dict[int, str]:
    """Return the class names for a fine-tuned pipeline: its own, and those of the data for classes without a name.

    If the two differ, a warning says so: the data may number its classes differently.
    """
    different = [
        number for number in found if number in saved and not _synonyms(saved[number]) & _synonyms(found[number])
    ]
    if different:
        number = different[0]
        logger.warning(
            "%d class(es) have different names in the data and in the pipeline, which keeps its own: %d is %r in "
            "the pipeline, and %r in the data. If the data numbers the same classes differently, renumber its "
            "labels first.",
            len(different),
            number,
            saved[number],
            found[number],
        )
    return dict(sorted({**found, **saved}.items()))


def _synonyms(name: str) -> set[str]:
    return {part.strip() for part in name.split(",")}


def check_class_labels(labels: torch.Tensor | None, embeddings: int | None) -> None:
    """Check that the model has the classes of a batch.

    Args:
        labels: `(B,)`, the labels in the data; None for data without classes.
        embeddings: `num_class_embeds` of the model.

    Raises:
        ValueError: names the label and the valid ones.
    """
    if labels is None or embeddings is None:
        return
    wrong = labels[(labels < 0) | (labels >= embeddings - 1)]
    if len(wrong):
        raise ValueError(
            f"A sample has class {int(wrong[0])}, but the model has the classes 0 to {embeddings - 2}: the last of "
            f"its "
            f"{embeddings} embeddings (`model.num_class_embeds`) stands for none. Correct the labels, or train a "
            "model with more classes."
        )


def class_number(pipeline: ClassPipelineBase, text: str) -> int:
    """Return the class for a validation prompt, which is its name, one of its synonyms, or its number.

    Raises:
        ValueError: there is no such class; similar names are suggested.
    """
    entries = [number for number, names in pipeline.id2label.items() if names == text]
    if len(entries) == 1:
        return entries[0]
    is_number = text.isdecimal() and text not in pipeline.labels
    return pipeline.classes.numbers(int(text) if is_number else text, "validation.prompts")[0]


def class_argument(text: str, id2label: Mapping[int, str]) -> int | str:
    """Return the pipeline's argument for the class of a validation prompt: its name or, without one, its number."""
    bearers = [number for number, names in id2label.items() if text in _synonyms(names)]
    if len(bearers) == 1:
        return text
    entries = [number for number, names in id2label.items() if names == text]
    return entries[0] if entries else int(text)
