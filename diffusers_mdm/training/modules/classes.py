# SPDX-License-Identifier: Apache-2.0
"""Models of classes in training: which pipeline they make, what the classes are called, and which labels are wrong."""

import logging
from collections.abc import Mapping

import torch

from ...pipelines.pipeline_class_base import ClassPipelineBase
from ...pipelines.pipeline_mdm import MDMPipeline
from ...pipelines.pipeline_mdm_class_conditional import MDMClassConditionalPipeline
from ...pipelines.pipeline_mdm_video import MDMVideoPipeline
from ..recipe.clip_rows import has_clips
from ..recipe.recipe import Recipe

logger = logging.getLogger(__name__)

TrainedPipeline = MDMPipeline | MDMClassConditionalPipeline | MDMVideoPipeline


def num_class_embeds(recipe: Recipe) -> int | None:
    """Class embeddings of the model, the last of which stands for none; None for a model without classes."""
    return recipe.model.get("num_class_embeds")


def sees_text(recipe: Recipe) -> bool:
    """Whether the model draws from texts."""
    return recipe.model.get("cross_attention_dim") is not None


def draws_classes_alone(recipe: Recipe) -> bool:
    """Whether a class, and no text, says what the model draws."""
    return num_class_embeds(recipe) is not None and not sees_text(recipe)


def pipeline_class(
    recipe: Recipe,
) -> type[MDMPipeline] | type[MDMClassConditionalPipeline] | type[MDMVideoPipeline]:
    """The pipeline that a recipe trains: that of clips for every model of them, else that of classes."""
    if has_clips(recipe):
        return MDMVideoPipeline
    return MDMPipeline if num_class_embeds(recipe) is None else MDMClassConditionalPipeline


def keep_class_names(saved: Mapping[int, str], found: Mapping[int, str]) -> dict[int, str]:
    """Names for a pipeline that is trained on: its own ones, and those of the data for classes without a name.

    Where the two contradict each other, a warning says so: the data may number its classes in another way.
    """
    different = [
        number for number in found if number in saved and not _synonyms(saved[number]) & _synonyms(found[number])
    ]
    if different:
        number = different[0]
        logger.warning(
            "%d class(es) have other names in the data than in the pipeline, which keeps its own: %d is %r there, and "
            "%r in the data. If the data numbers the same classes in another way, renumber its labels first.",
            len(different),
            number,
            saved[number],
            found[number],
        )
    return dict(sorted({**found, **saved}.items()))


def _synonyms(name: str) -> set[str]:
    return {part.strip() for part in name.split(",")}


def check_class_labels(labels: torch.Tensor | None, embeddings: int | None) -> None:
    """Refuse pictures of a class that the model does not have.

    Args:
        labels: `(B,)` of the pictures as they are in the data; None for data without classes.
        embeddings: `num_class_embeds` of the model.

    Raises:
        ValueError: names the label and those that there are.
    """
    if labels is None or embeddings is None:
        return
    wrong = labels[(labels < 0) | (labels >= embeddings - 1)]
    if len(wrong):
        raise ValueError(
            f"A picture is of class {int(wrong[0])}, but the model has the classes 0 to {embeddings - 2}: of its "
            f"{embeddings} embeddings (`model.num_class_embeds`) the last one stands for none. Correct the labels, "
            "or train a model with more of them."
        )


def class_number(pipeline: ClassPipelineBase, text: str) -> int:
    """The class that a validation prompt means: its name, one of its synonyms, or its number.

    Raises:
        ValueError: there is no such class; the nearest names are suggested.
    """
    entries = [number for number, names in pipeline.id2label.items() if names == text]
    if len(entries) == 1:
        return entries[0]
    is_number = text.isdecimal() and text not in pipeline.labels
    return pipeline.classes.numbers(int(text) if is_number else text, "validation.prompts")[0]


def class_argument(text: str, id2label: Mapping[int, str]) -> int | str:
    """What to pass to a pipeline for the class that a validation prompt means: a name, or else a number."""
    bearers = [number for number, names in id2label.items() if text in _synonyms(names)]
    if len(bearers) == 1:
        return text
    entries = [number for number, names in id2label.items() if names == text]
    return entries[0] if entries else int(text)
