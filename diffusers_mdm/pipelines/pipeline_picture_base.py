# SPDX-License-Identifier: Apache-2.0
"""What the pipelines that start from pictures share, for models of texts and for models of classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from diffusers.schedulers import KarrasDiffusionSchedulers
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from diffusers_mdm.models import NestedUNetModel
from diffusers_mdm.pipelines import input_checks as checks
from diffusers_mdm.pipelines.conditioning import ConditionInputs
from diffusers_mdm.pipelines.image_inputs import Pictures, check_rows
from diffusers_mdm.pipelines.pipeline_class_base import ClassPipelineBase
from diffusers_mdm.pyramid import Pyramid, build_pyramid
from diffusers_mdm.schedulers import MatryoshkaScheduler


class PicturePipelineBase(ClassPipelineBase):
    """Starts from pictures: draws around them, over them, or inside a mask.

    Args:
        unet: the dolls, conditioned on texts, classes or both.
        scheduler: `MatryoshkaScheduler`, or one of the host's where a single doll is opened.
        text_encoder: as in `MDMPipeline`; None for a model of classes.
        tokenizer: its tokenizer.
        id2label: names of the classes by number, see `MDMClassConditionalPipeline`.
    """

    _optional_components = ["text_encoder", "tokenizer"]

    def __init__(
        self,
        unet: NestedUNetModel | None,
        scheduler: MatryoshkaScheduler | KarrasDiffusionSchedulers | None,
        text_encoder: PreTrainedModel | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        id2label: dict[int, str] | None = None,
    ) -> None:
        super().__init__(text_encoder=text_encoder, tokenizer=tokenizer, unet=unet, scheduler=scheduler)
        self.register_labels(id2label)

    def check_batch(
        self,
        inputs: ConditionInputs,
        num_pictures: Mapping[str, int],
        num_images_per_prompt: int,
        output_type: str,
        callback_inputs: Sequence[str] | None,
    ) -> int:
        """Refuse conditions and pictures that do not make one batch.

        Args:
            inputs: what is asked for.
            num_pictures: how many pictures or masks were given, by the name of the argument.
            num_images_per_prompt: see `__call__`.
            output_type: see `__call__`.
            callback_inputs: see `callback_on_step_end_tensor_inputs` of `__call__`.

        Returns:
            B, the number of pictures to draw.
        """
        checks.check_choices(output_type, callback_inputs, self._callback_tensor_inputs)
        checks.check_count("num_images_per_prompt", num_images_per_prompt)
        num_conditions = self.check_conditions(inputs)
        asked = "class_labels" if inputs.class_labels is not None else "prompt"
        return check_rows({asked: num_conditions, **num_pictures}) * num_images_per_prompt

    def prepare_pictures(self, pictures: Pictures, num_images: int, sides: Sequence[int]) -> Pyramid:
        """Average the given pictures down to the dolls inside, one row for each picture to draw.

        Args:
            pictures: as they were given.
            num_images: B; each given picture is repeated for its share of the rows.
            sides: heights of the levels, innermost first; the last one is the pictures' own.

        Returns:
            Levels `(B, C, H_i, W_i)` in [0, 1], innermost first.
        """
        pixels = pictures.pixels.to(self._execution_device, self.sample_dtype)
        return build_pyramid(pixels.repeat_interleave(num_images // len(pixels), dim=0), sides)
