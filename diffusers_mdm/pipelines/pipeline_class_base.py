# SPDX-License-Identifier: Apache-2.0
"""Pipelines for models of classes: labels are checked, encoded, and saved with their names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from diffusers import AutoencoderKL
from diffusers.schedulers import KarrasDiffusionSchedulers
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from diffusers_mdm.models import NestedUNetModel
from diffusers_mdm.pipelines.drawing import input_checks as checks
from diffusers_mdm.pipelines.drawing.class_labels import ClassLabelMixin, normalised_id2label
from diffusers_mdm.pipelines.drawing.conditioning import Conditioning, ConditionInputs, RowGroup, group_rows_by_text
from diffusers_mdm.pipelines.drawing.image_inputs import check_rows
from diffusers_mdm.pipelines.pipeline_base import MDMPipelineBase
from diffusers_mdm.schedulers import MatryoshkaScheduler


class ClassPipelineBase(ClassLabelMixin, MDMPipelineBase):
    """Draws what a model's texts, classes or both ask for, whichever the model has.

    Args:
        unet: the dolls, conditioned on texts, classes or both.
        scheduler: `MatryoshkaScheduler`, or one of the host's where a single doll is opened.
        text_encoder: as in `MDMPipeline`; None for a model of classes.
        tokenizer: its tokenizer.
        vae: for a model of latents, see `MDMPipeline`.
        id2label: names of the classes by number, see `MDMClassConditionalPipeline`.
    """

    _callback_tensor_inputs = [*MDMPipelineBase._callback_tensor_inputs, "class_labels", "negative_class_labels"]

    _optional_components = ["text_encoder", "tokenizer", "vae"]

    def __init__(
        self,
        unet: NestedUNetModel | None,
        scheduler: MatryoshkaScheduler | KarrasDiffusionSchedulers | None,
        text_encoder: PreTrainedModel | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        vae: AutoencoderKL | None = None,
        id2label: dict[int, str] | dict[str, str] | None = None,  # keys are texts when read from JSON
    ) -> None:
        super().__init__(text_encoder=text_encoder, tokenizer=tokenizer, unet=unet, scheduler=scheduler, vae=vae)
        self.register_labels(id2label)

    def register_labels(self, id2label: dict[int, str] | dict[str, str] | None) -> None:
        """Note the names of the classes, so that they are saved with the pipeline.

        Args:
            id2label: names by number; None registers nothing.
        """
        names = normalised_id2label(id2label)
        if names is not None:
            self.register_to_config(id2label=names)

    def check_conditions(self, inputs: ConditionInputs) -> int:
        """Refuse prompts and labels that do not belong together or to this model.

        Args:
            inputs: what is asked for.

        Returns:
            How many different pictures are asked for.

        Raises:
            ValueError: says what was wrong, what was expected and what to do.
            TypeError: `prompt` and `negative_prompt` are of different types.
        """
        config = self.unet.config
        labels, negatives = inputs.class_labels, inputs.negative_class_labels
        if config.num_class_embeds is None and not (labels is None and negatives is None):
            raise ValueError(
                "This model has no classes (`num_class_embeds` is None); pass `prompt` instead of labels."
            )
        counts = {}
        if config.cross_attention_dim is not None:
            counts["prompt"] = self.check_texts(inputs)
        elif inputs.has_text:
            raise ValueError(
                "This model reads no text (`cross_attention_dim` is None); pass `class_labels` instead of prompts."
            )
        if config.num_class_embeds is not None:
            if labels is None:
                raise ValueError(
                    f"This model draws classes: pass `class_labels`, numbers from 0 to {self.null_class - 1} or names "
                    "of `pipeline.labels`."
                )
            counts["class_labels"] = len(self.resolve_class_labels(labels))
            if negatives is not None:
                counts["negative_class_labels"] = len(self.resolve_class_labels(negatives, "negative_class_labels"))
                if counts["negative_class_labels"] > counts["class_labels"]:
                    raise ValueError(
                        f"Got {counts['negative_class_labels']} negative labels for {counts['class_labels']} labels; "
                        "pass one for each label, one for all, or none."
                    )
        return check_rows(counts)

    def check_batch(
        self,
        inputs: ConditionInputs,
        num_pictures: Mapping[str, int],
        num_images_per_prompt: int,
        output_type: str,
        callback_inputs: Sequence[str] | None,
        count_name: str = "num_images_per_prompt",
    ) -> int:
        """Refuse conditions and pictures that do not make one batch.

        Args:
            inputs: what is asked for.
            num_pictures: how many pictures or masks were given, by the name of the argument.
            num_images_per_prompt: see `__call__`.
            output_type: see `__call__`.
            callback_inputs: see `callback_on_step_end_tensor_inputs` of `__call__`.
            count_name: what the error message calls `num_images_per_prompt`.

        Returns:
            B, the number of pictures to draw.
        """
        checks.check_choices(output_type, callback_inputs, self._callback_tensor_inputs)
        checks.check_count(count_name, num_images_per_prompt)
        num_conditions = self.check_conditions(inputs)
        asked = "class_labels" if inputs.class_labels is not None else "prompt"
        return check_rows({asked: num_conditions, **num_pictures}) * num_images_per_prompt

    def encode_conditioning(
        self, inputs: ConditionInputs, num_images: int, max_sequence_length: int = 128
    ) -> tuple[Conditioning, list[RowGroup]]:
        """Encode what is asked for, and say which rows may go through the model together.

        Args:
            inputs: what is asked for.
            num_images: B; each prompt and each label is repeated for its share of the rows.
            max_sequence_length: longer prompts are cut, with a warning.
        """
        if self.unet.config.cross_attention_dim is not None:
            conditioning, groups = super().encode_conditioning(inputs, num_images, max_sequence_length)
        else:
            conditioning = Conditioning()
            groups = group_rows_by_text(conditioning, own_columns=False)
        if inputs.class_labels is None:
            return conditioning, groups
        num_labels = len(self.resolve_class_labels(inputs.class_labels))
        labels = self.encode_class_labels(
            inputs.class_labels, inputs.negative_class_labels, num_images // num_labels, self._execution_device
        )
        return conditioning._replace(class_labels=labels[0], negative_class_labels=labels[1]), groups
