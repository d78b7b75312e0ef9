# SPDX-License-Identifier: Apache-2.0
"""The base class of pipelines for models with or without classes: labels are checked, encoded, and saved with their
names.
"""

from __future__ import annotations

from typing import Any

from diffusers.schedulers import KarrasDiffusionSchedulers
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from diffusers_mdm.models import NestedUNetModel
from diffusers_mdm.pipelines.drawing import input_checks as checks
from diffusers_mdm.pipelines.drawing.class_labels import ClassTable, normalised_id2label
from diffusers_mdm.pipelines.drawing.conditioning import Conditioning
from diffusers_mdm.pipelines.drawing.guidance.prediction import is_guided
from diffusers_mdm.pipelines.drawing.latent_space import Autoencoder
from diffusers_mdm.pipelines.drawing.request import Request
from diffusers_mdm.pipelines.drawing.setup import Drawing
from diffusers_mdm.pipelines.pipeline_base import MDMPipelineBase
from diffusers_mdm.schedulers import MatryoshkaScheduler


class ClassPipelineBase(MDMPipelineBase):
    """Base class of pipelines for models that are conditioned on text, classes or both.

    Those that start from an image also take models without conditions.

    Args:
        unet: the model, conditioned on text, classes, both or neither.
        scheduler: `MatryoshkaScheduler`, or one of diffusers' schedulers to generate a single level.
        text_encoder: as in `MDMPipeline`; None for a class-conditional model.
        tokenizer: its tokenizer.
        vae: for a model on latents; see `MDMPipeline`.
        id2label: class names by number; see `MDMClassConditionalPipeline`.
        drawing_defaults: default settings that suit the model; see `MDMPipeline`.
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
        id2label: dict[int, str] | dict[str, str] | None = None,  # keys are strings when read from JSON
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
        """Register the class names, so that they are saved with the pipeline.

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
        """Class names by number, with synonyms separated by commas; empty if the classes have no names."""
        return {int(key): name for key, name in (self.config.get("id2label") or {}).items()}

    @property
    def labels(self) -> dict[str, int]:
        """Class numbers by name, sorted by name; names that several classes have are omitted."""
        return self.classes.labels

    @property
    def null_class(self) -> int:
        """The number of the null class ("no class"): the last embedding of the model."""
        return self.classes.null_class

    def get_label_ids(self, label: str | list[str]) -> list[int]:
        """Return the numbers of classes by their names.

        Args:
            label: one name or a list of names.

        Raises:
            ValueError: no class or several classes have a name; similar names are suggested.
        """
        return self.classes.ids_of_names(label)

    @property
    def has_conditions(self) -> bool:
        """Whether the model is conditioned on text or classes."""
        return checks.has_conditions(self.unet.config)

    def check_inputs(self, request: Request) -> None:
        """Check the arguments of a call; see `MDMPipelineBase.check_inputs`.

        Raises:
            ValueError: also if guidance was requested from a model without conditions.
        """
        if self.unet is not None and not self.has_conditions and request.guidance_unet is None:
            if request.guider is not None or is_guided(request.guidance_scale or 1.0):
                raise ValueError(
                    "Guidance compares predictions with and without a prompt or class, and this model takes neither: "
                    "omit `guidance_scale` and `guider`, or pass a weaker model as `guidance_unet`."
                )
            request.guidance_scale = 1.0  # the default of a folder is for models with conditions
        super().check_inputs(request)

    def count_conditions(self, request: Request) -> dict[str, int]:
        """Check and count prompts and labels; see `MDMPipelineBase.count_conditions`."""
        config = self.unet.config
        labels, negatives = request.class_labels, request.negative_class_labels
        if config.num_class_embeds is None and not (labels is None and negatives is None):
            instead = "omit labels" if config.cross_attention_dim is None else "pass `prompt` instead of labels"
            raise ValueError(f"This model has no classes (`num_class_embeds` is None); {instead}.")
        counts = {}
        if config.cross_attention_dim is not None:
            checks.check_texts(request, config.encoder_hid_dim or config.cross_attention_dim)
            counts["prompt"] = request.num_prompts
        elif request.has_text:
            instead = "omit prompts" if config.num_class_embeds is None else "pass `class_labels` instead of prompts"
            raise ValueError(f"This model reads no text (`cross_attention_dim` is None); {instead}.")
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
        """Encode prompts and labels; see `MDMPipelineBase.encode_conditions`."""
        if self.unet.config.cross_attention_dim is not None:
            super().encode_conditions(drawing)
        if not self.has_conditions:
            drawing.condition_on(Conditioning())
        if drawing.request.class_labels is not None:
            labels, negatives = self.classes.encode(drawing.request, drawing.device)
            drawing.condition_on(drawing.conditioning._replace(class_labels=labels, negative_class_labels=negatives))
