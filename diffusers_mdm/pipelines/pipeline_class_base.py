# SPDX-License-Identifier: Apache-2.0
"""Pipelines for models of classes: labels are checked, encoded, and saved with their names."""

from __future__ import annotations

from typing import Any

from diffusers.schedulers import KarrasDiffusionSchedulers
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from diffusers_mdm.models import NestedUNetModel
from diffusers_mdm.pipelines.drawing import input_checks as checks
from diffusers_mdm.pipelines.drawing.class_labels import ClassTable, normalised_id2label
from diffusers_mdm.pipelines.drawing.latent_space import Autoencoder
from diffusers_mdm.pipelines.drawing.request import Request
from diffusers_mdm.pipelines.drawing.setup import Drawing
from diffusers_mdm.pipelines.pipeline_base import MDMPipelineBase
from diffusers_mdm.schedulers import MatryoshkaScheduler


class ClassPipelineBase(MDMPipelineBase):
    """Draws what a model's texts, classes or both ask for, whichever the model has.

    Args:
        unet: the model, conditioned on texts, classes or both.
        scheduler: `MatryoshkaScheduler`, or one of diffusers' where a single level is drawn.
        text_encoder: as in `MDMPipeline`; None for a model of classes.
        tokenizer: its tokenizer.
        vae: for a model of latents, see `MDMPipeline`.
        id2label: names of the classes by number, see `MDMClassConditionalPipeline`.
        drawing_defaults: settings that suit the model, see `MDMPipeline`.
    """

    _callback_tensor_inputs = [*MDMPipelineBase._callback_tensor_inputs, "class_labels", "negative_class_labels"]

    _optional_components = ["text_encoder", "tokenizer", "vae"]

    def __init__(
        self,
        unet: NestedUNetModel | None,
        scheduler: MatryoshkaScheduler | KarrasDiffusionSchedulers | None,
        text_encoder: PreTrainedModel | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        vae: Autoencoder | None = None,
        id2label: dict[int, str] | dict[str, str] | None = None,  # keys are texts when read from JSON
        drawing_defaults: dict[str, Any] | None = None,
    ) -> None:
        parts = {
            "text_encoder": text_encoder,
            "tokenizer": tokenizer,
            "unet": unet,
            "scheduler": scheduler,
            "vae": vae,
        }
        super().__init__(drawing_defaults, **parts)
        self.register_labels(id2label)

    def register_labels(self, id2label: dict[int, str] | dict[str, str] | None) -> None:
        """Note the names of the classes, so that they are saved with the pipeline.

        Args:
            id2label: names by number; None registers nothing.
        """
        names = normalised_id2label(id2label)
        if names is not None:
            self.register_to_config(id2label=names)

    @property
    def classes(self) -> ClassTable:
        """The classes of the model, with their names."""
        return ClassTable(self.unet.config.num_class_embeds, self.id2label)

    @property
    def id2label(self) -> dict[int, str]:
        """Name of each class by its number, synonyms separated by commas. Empty where the classes have no names."""
        return {int(key): name for key, name in (self.config.get("id2label") or {}).items()}

    @property
    def labels(self) -> dict[str, int]:
        """Number of each class by its name, sorted by name; a name that several classes bear is left out."""
        return self.classes.labels

    @property
    def null_class(self) -> int:
        """The number that stands for no class: the last embedding of the model."""
        return self.classes.null_class

    def get_label_ids(self, label: str | list[str]) -> list[int]:
        """Give the numbers of classes by their names.

        Args:
            label: one name or a list of them.

        Raises:
            ValueError: a name that no class or several classes bear; the nearest names are suggested.
        """
        return self.classes.ids_of_names(label)

    def count_conditions(self, request: Request) -> dict[str, int]:
        """See `MDMPipelineBase.count_conditions`; labels are looked at, too."""
        config = self.unet.config
        labels, negatives = request.class_labels, request.negative_class_labels
        if config.num_class_embeds is None and not (labels is None and negatives is None):
            raise ValueError(
                "This model has no classes (`num_class_embeds` is None); pass `prompt` instead of labels."
            )
        if config.num_class_embeds is None and config.cross_attention_dim is None:
            raise ValueError(
                "This model is conditioned on neither texts nor classes, and no pipeline here draws without either; "
                "train one with `cross_attention_dim` or `num_class_embeds`."
            )
        counts = {}
        if config.cross_attention_dim is not None:
            checks.check_texts(request, config.encoder_hid_dim or config.cross_attention_dim)
            counts["prompt"] = request.num_prompts
        elif request.has_text:
            raise ValueError(
                "This model reads no text (`cross_attention_dim` is None); pass `class_labels` instead of prompts."
            )
        if config.num_class_embeds is not None:
            if labels is None:
                raise ValueError(
                    f"This model draws classes: pass `class_labels`, numbers from 0 to {self.null_class - 1} or names "
                    "of `pipeline.labels`."
                )
            counts["class_labels"] = len(self.classes.numbers(labels))
            if negatives is not None:
                counts["negative_class_labels"] = len(self.classes.numbers(negatives, "negative_class_labels"))
                if counts["negative_class_labels"] > counts["class_labels"]:
                    raise ValueError(
                        f"Got {counts['negative_class_labels']} negative labels for {counts['class_labels']} labels; "
                        "pass one for each label, one for all, or none."
                    )
        return counts

    def encode_conditions(self, drawing: Drawing) -> None:
        """See `MDMPipelineBase.encode_conditions`; labels are encoded, too."""
        if self.unet.config.cross_attention_dim is not None:
            super().encode_conditions(drawing)
        if drawing.request.class_labels is not None:
            labels, negatives = self.classes.encode(drawing.request, drawing.device)
            drawing.condition_on(drawing.conditioning._replace(class_labels=labels, negative_class_labels=negatives))
