# SPDX-License-Identifier: Apache-2.0
"""A training recipe: one YAML file that says what is trained, on what, and in which stages from the inside out."""

import dataclasses
import functools
from dataclasses import dataclass
from typing import Any

from ...models.level_config import LevelConfig
from ...models.level_geometry import level_sides
from .clip_checks import check_clips
from .clip_rows import data_of
from .data import DataRecipe
from .fields import COUNT, NOT_NEGATIVE, FieldError, check_ranges, read_fields
from .model_checks import check_levels, read_model_arguments, read_scheduler_arguments
from .optimizer import OptimizerRecipe, Precision
from .pretrained import LoraRecipe, PretrainedRecipe, PriorRecipe
from .stage import StageRecipe
from .text_encoder import TextEncoderRecipe
from .vae import VaeRecipe


@dataclass(frozen=True)
class ValidationRecipe:
    """What is drawn at every checkpoint, and measured on held-out pictures, with the averaged weights."""

    prompts: tuple[str, ...] = ()  # of a model of classes: their names or numbers
    num_inference_steps: int = 25
    guidance_scale: float = 3.0
    num_validation_images: int = 1  # a prompt; 0 draws none
    num_loss_images: int = 64  # of the validation split, for the validation loss

    @property
    def drawn_prompts(self) -> tuple[str, ...]:
        """The prompt of each picture that is drawn; none where none is wanted."""
        return tuple(prompt for prompt in self.prompts for _ in range(self.num_validation_images))

    def __post_init__(self) -> None:
        check_ranges(
            self,
            {
                "num_inference_steps": COUNT,
                "guidance_scale": NOT_NEGATIVE,
                "num_validation_images": NOT_NEGATIVE,
                "num_loss_images": COUNT,
            },
        )


@dataclass(frozen=True)
class Recipe:
    """A whole run. `model` has the arguments of `NestedUNetModel` that belong to no level."""

    name: str
    model: dict[str, Any]
    levels: tuple[dict[str, Any], ...]  # the fields of `LevelConfig`, innermost level first
    data: DataRecipe
    stages: tuple[StageRecipe, ...]
    pictures: DataRecipe | None = None  # of a model of clips: what is trained on beside them, and before there are any
    text_encoder: TextEncoderRecipe | None = None  # None: for models of classes, which see no text
    pretrained: PretrainedRecipe | None = None
    vae: VaeRecipe | None = None  # for a model of latents
    lora: LoraRecipe | None = None
    prior_preservation: PriorRecipe | None = None
    scheduler: dict[str, Any] = dataclasses.field(default_factory=dict)
    optimizer: OptimizerRecipe = dataclasses.field(default_factory=OptimizerRecipe)
    validation: ValidationRecipe = dataclasses.field(default_factory=ValidationRecipe)
    mixed_precision: Precision = "no"
    use_ema: bool = True
    channels_last: bool = True
    zero_init: bool = True  # start with silent residual branches and output, as the published models do

    def __post_init__(self) -> None:
        read_model_arguments(self.model)
        read_scheduler_arguments(self.scheduler)
        if not self.levels or not self.stages:
            raise FieldError("levels" if not self.levels else "stages", "must list at least one entry.")
        check_levels(self.rows, self.sample_size)
        base = self.scheduler.get("base_sample_size", self.sample_size)
        if base != self.sample_size:
            raise FieldError("scheduler.base_sample_size", f"is {base}, but level 0 has {self.sample_size} pixels.")
        if self.scheduler.get("prediction_type", "v_prediction") != "v_prediction":
            raise FieldError("scheduler.prediction_type", "must be 'v_prediction', which is what the loss compares.")
        if self.vae is not None and self.vae.from_pipeline and self.pretrained is None:
            raise FieldError("vae.from_pipeline", "needs `pretrained`, the pipeline whose autoencoder it is.")
        self._check_validation()
        self._check_conditions()
        self._check_stages()
        self._check_lora()
        check_clips(self)

    def _check_validation(self) -> None:
        betas = self.scheduler.get("trained_betas")
        most = len(betas) if betas else self.scheduler.get("num_train_timesteps", 1000)
        if self.validation.num_inference_steps > most:
            raise FieldError(
                "validation.num_inference_steps",
                f"is {self.validation.num_inference_steps}, but the scheduler has {most} time steps "
                "(`scheduler.num_train_timesteps`).",
            )

    def _check_stages(self) -> None:
        before = 1
        for position, stage in enumerate(self.stages):
            if not before <= stage.levels <= len(self.levels):
                raise FieldError(
                    f"stages[{position}].levels", f"must be {before} to {len(self.levels)}, got {stage.levels}."
                )
            before = stage.levels
            if stage.until_plateau is not None and not data_of(self, stage).has_validation:
                raise FieldError(
                    f"stages[{position}].until_plateau",
                    "needs held-out pictures or clips: set `validation_split` of the data that the stage trains on.",
                )

    def _check_conditions(self) -> None:
        sees_text = self.model.get("cross_attention_dim") is not None
        has_classes = self.model.get("num_class_embeds") is not None
        if has_classes != (self.data.label_column is not None):
            raise FieldError(
                "data.label_column", "and `model.num_class_embeds` belong together: set both, or leave both out."
            )
        if sees_text and self.text_encoder is None:
            raise FieldError("text_encoder", "is missing; the model takes text (`model.cross_attention_dim` is set).")
        if not sees_text and (self.text_encoder is not None or not has_classes):
            raise FieldError(
                "model.cross_attention_dim",
                "must be set: the model would not see the captions. A model of classes alone has no `text_encoder`, "
                "but `model.num_class_embeds` and `data.label_column`.",
            )
        if self.prior_preservation is not None and (not sees_text or has_classes or not self.data.is_numbered):
            raise FieldError("prior_preservation", "needs a model of texts alone, and `data.path` in place of shards.")
        if self.text_encoder is not None:
            self._check_text(self.text_encoder)

    def _check_text(self, encoder: TextEncoderRecipe) -> None:
        if encoder.from_pipeline and self.pretrained is None:
            raise FieldError("text_encoder.from_pipeline", "needs `pretrained`, the pipeline whose encoder it is.")
        if encoder.train_text_encoder and self.data.embeddings_dir is not None:
            raise FieldError(
                "data.embeddings_dir", "holds what a frozen encoder wrote; with it set `train_text_encoder: false`."
            )
        expected = self.model.get("encoder_hid_dim") or self.model.get("cross_attention_dim")
        if encoder.d_model is not None and encoder.d_model != expected:
            raise FieldError(
                "text_encoder.d_model",
                f"is {encoder.d_model}, but the model takes {expected} (`model.encoder_hid_dim`, or without it "
                "`model.cross_attention_dim`).",
            )

    def _check_lora(self) -> None:
        if self.lora is None:
            return
        if self.pretrained is None:
            raise FieldError("lora", "adapts a model that has learnt: set `pretrained`, the pipeline to start from.")
        if self.trains_text_encoder:
            raise FieldError(
                "lora", "saves adapters of the U-Net alone: set `text_encoder.train_text_encoder: false`."
            )
        trained = sorted({stage.levels for stage in self.stages})
        if len(trained) > 1:
            raise FieldError("lora", f"cannot grow: all stages must train the same levels, not {trained} of them.")
        if any(stage.frozen_levels for stage in self.stages):
            raise FieldError("lora", "freezes the model itself: leave `frozen_levels` out, and name `target_modules`.")

    @property
    def trains_text_encoder(self) -> bool:
        """Whether the text encoder learns together with the U-Net."""
        return self.text_encoder is not None and self.text_encoder.train_text_encoder

    @property
    def max_sequence_length(self) -> int:
        """Number of tokens after which captions are cut; 0 for a model without text."""
        return 0 if self.text_encoder is None else self.text_encoder.max_sequence_length

    @property
    def sample_size(self) -> int:
        """Side of level 0 in pixels, or in latents where there is a `vae`."""
        return int(self.model.get("sample_size", 64))

    @property
    def sides(self) -> tuple[int, ...]:
        """Side of every level, innermost first, in pixels or latents as `sample_size`."""
        return level_sides(self.sample_size, self.rows)

    @functools.cached_property
    def rows(self) -> tuple[LevelConfig, ...]:
        """The `LevelConfig` of every level, innermost first."""
        return tuple(read_fields(LevelConfig, row, f"levels[{position}]") for position, row in enumerate(self.levels))
