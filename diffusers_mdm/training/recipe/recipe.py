# SPDX-License-Identifier: Apache-2.0
"""The training recipe: what is trained, on which data, and in which stages from the inside out."""

import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from ...models.level_config import LevelConfig
from ...models.level_geometry import level_sides
from ...schedulers.scheduler_config import check_predictions
from .buckets import check_buckets
from .clip_checks import check_clips
from .clip_stages import data_of
from .data import DataRecipe
from .fields import COUNT, NOT_NEGATIVE, FieldError, check_ranges, read_fields
from .model_checks import check_levels, read_model_arguments, read_scheduler_arguments
from .optimizer import OptimizerRecipe, PostHocEmaRecipe, Precision
from .pretrained import LoraRecipe, PretrainedRecipe, PriorRecipe, VaeRecipe
from .stage import AlignmentRecipe, ExtraLossRecipe, PerceptualRecipe, StageRecipe
from .super_resolution import SuperResolutionRecipe, check_channels, check_levels_fit
from .text_encoder import TextEncoderRecipe

# Metrics of images generated for held-out captions, with the number of images below which each says nothing.
VALIDATION_METRICS = {"fid": 50, "kid": 50, "clip": 1, "retrieval": 2}

# Below this a learning rate is one of AdamW; diffusers' scripts warn below the same.
SMALLEST_PRODIGY_RATE = 0.1


@dataclass(frozen=True)
class ValidationRecipe:
    """Samples to generate, and held-out data to measure, at every checkpoint with the averaged weights."""

    # For a class-conditional model class names or numbers; none for an unconditional model.
    prompts: tuple[str, ...] = ()
    num_inference_steps: int = 25
    guidance_scale: float = 3.0
    num_validation_images: int = 1  # per prompt, or in all for an unconditional model; 0 for none
    num_loss_images: int = 64  # number of images of the validation split for the validation loss
    metrics: tuple[str, ...] = ()  # of images generated for held-out captions: fid, kid, clip, retrieval
    num_metric_images: int = 64  # number of held-out captions to generate and compare
    clip_model: str = "openai/clip-vit-large-patch14-336"  # of the metric clip

    @property
    def drawn_prompts(self) -> tuple[str, ...]:
        """The prompt of each sample to generate; empty if there are none."""
        return tuple(prompt for prompt in self.prompts for _ in range(self.num_validation_images))

    def __post_init__(self) -> None:
        check_ranges(
            self,
            {
                "num_inference_steps": COUNT,
                "guidance_scale": NOT_NEGATIVE,
                "num_validation_images": NOT_NEGATIVE,
                "num_loss_images": COUNT,
                "num_metric_images": COUNT,
            },
        )
        unknown = [name for name in self.metrics if name not in VALIDATION_METRICS]
        if unknown:
            raise FieldError("metrics", f"has {unknown[0]!r}; choose from {', '.join(VALIDATION_METRICS)}.")
        for name in self.metrics:
            if self.num_metric_images < VALIDATION_METRICS[name]:
                raise FieldError(
                    "num_metric_images",
                    f"is {self.num_metric_images}, but the metric {name!r} needs {VALIDATION_METRICS[name]} at least.",
                )


@dataclass(frozen=True)
class Recipe:
    """The settings of a whole run. `model` has the arguments of `NestedUNetModel` that do not belong to a level."""

    # Older names of fields.
    RENAMED: ClassVar[Mapping[str, str]] = {"pictures": "images"}

    name: str
    model: dict[str, Any]
    levels: tuple[dict[str, Any], ...]  # the fields of `LevelConfig`, innermost level first
    data: DataRecipe
    stages: tuple[StageRecipe, ...]
    images: DataRecipe | None = (
        None  # for a video model: images to train on together with clips, and before the model has frames
    )
    text_encoder: TextEncoderRecipe | None = None  # None for class-conditional and unconditional models
    pretrained: PretrainedRecipe | None = None
    vae: VaeRecipe | None = None  # for a model on latents
    super_resolution: SuperResolutionRecipe | None = None  # for a model that enlarges images
    lora: LoraRecipe | None = None
    prior_preservation: PriorRecipe | None = None
    alignment: AlignmentRecipe | None = None
    perceptual: PerceptualRecipe | None = None
    scheduler: dict[str, Any] = dataclasses.field(default_factory=dict)
    optimizer: OptimizerRecipe = dataclasses.field(default_factory=OptimizerRecipe)
    validation: ValidationRecipe = dataclasses.field(default_factory=ValidationRecipe)
    mixed_precision: Precision = "no"
    use_ema: bool = True
    post_hoc_ema: PostHocEmaRecipe | None = None  # averages whose width is chosen after training
    channels_last: bool | None = None  # memory format of images and convolutions; None: channels_last on CPUs only
    zero_init: bool = (
        True  # initialise the end of residual branches and the output with zeros, as the published models do
    )

    def __post_init__(self) -> None:
        read_model_arguments(self.model)
        read_scheduler_arguments(self.scheduler)
        if not self.levels or not self.stages:
            raise FieldError("levels" if not self.levels else "stages", "must list at least one entry.")
        check_levels(self.level_configs, self.sample_size)
        base = self.scheduler.get("base_sample_size", self.sample_size)
        if base != self.sample_size:
            raise FieldError("scheduler.base_sample_size", f"is {base}, but level 0 has {self.sample_size} pixels.")
        self._check_predictions()
        check_channels(self.model, self.super_resolution)
        self._check_super_resolution()
        if self.vae is not None and self.vae.from_pipeline and self.pretrained is None:
            raise FieldError("vae.from_pipeline", "needs `pretrained`, the pipeline with the autoencoder.")
        self._check_validation()
        self._check_conditions()
        self._check_stages()
        self._check_lora()
        self._check_optimizer()
        check_clips(self)
        check_buckets(self, is_of_pixels=self.vae is None)
        self._check_extra_losses()

    def _check_predictions(self) -> None:
        """Refuse predictions that do not fit the levels."""
        kind, sigma_data = self.scheduler.get("prediction_type", "v_prediction"), self.scheduler.get("sigma_data", 1.0)
        try:
            check_predictions(kind, sigma_data)
        except ValueError as error:
            raise ValueError(f"`scheduler`: {error}") from error
        for field, values, number in (
            ("prediction_type", kind, len(self.levels)),
            ("sigma_data", sigma_data, len(self.levels) - 1),
        ):
            if isinstance(values, (list, tuple)) and len(values) != number:
                raise FieldError(
                    f"scheduler.{field}", f"has {len(values)} entries, but {number} are needed for the levels."
                )

    def _check_super_resolution(self) -> None:
        """Refuse what does not fit a model that enlarges images."""
        if self.super_resolution is None:
            return
        check_levels_fit(self.super_resolution, self.level_configs, self.sides[-1])
        for name, is_set in (
            ("vae", self.vae is not None),
            ("data.video_column", self.data.video_column is not None),
            ("validation.prompts", bool(self.validation.drawn_prompts)),
            ("validation.metrics", bool(self.validation.metrics)),
            ("prior_preservation", self.prior_preservation is not None),
            ("stages.noise_offset", any(stage.noise_offset for stage in self.stages)),
        ):
            if is_set:
                raise FieldError(name, "cannot be combined with `super_resolution`: omit it.")

    def _check_validation(self) -> None:
        betas = self.scheduler.get("trained_betas")
        most = len(betas) if betas else self.scheduler.get("num_train_timesteps", 1000)
        if self.validation.num_inference_steps > most:
            raise FieldError(
                "validation.num_inference_steps",
                f"is {self.validation.num_inference_steps}, but the scheduler has {most} timesteps "
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
                    "needs held-out data: set `validation_split` for the data that the stage trains on.",
                )
            metric = "loss" if stage.until_plateau is None else stage.until_plateau.metric
            if metric != "loss" and metric not in self.validation.metrics:
                raise FieldError(
                    f"stages[{position}].until_plateau.metric",
                    f"is {metric!r}, which is not measured: add it to `validation.metrics` (--validation_metrics).",
                )

    def _check_conditions(self) -> None:
        sees_text = self.model.get("cross_attention_dim") is not None
        has_classes = self.model.get("num_class_embeds") is not None
        if has_classes != (self.data.label_column is not None):
            raise FieldError(
                "data.label_column", "and `model.num_class_embeds` belong together: set both, or neither."
            )
        if sees_text and self.text_encoder is None:
            raise FieldError(
                "text_encoder", "is missing, but the model takes text (`model.cross_attention_dim` is set)."
            )
        if not sees_text and self.text_encoder is not None:
            raise FieldError(
                "model.cross_attention_dim",
                "must be set, otherwise the model would ignore the captions. A class-conditional model has no "
                "`text_encoder`, but `model.num_class_embeds` and `data.label_column`; an unconditional model has "
                "none of these.",
            )
        if not sees_text:
            self._check_without_text(has_classes)
        if self.prior_preservation is not None and (not sees_text or has_classes or not self.data.is_numbered):
            raise FieldError(
                "prior_preservation", "needs a model that takes only text, and `data.path` instead of shards."
            )
        if self.text_encoder is not None:
            self._check_text(self.text_encoder)

    def _check_without_text(self, has_classes: bool) -> None:
        """Refuse settings of captions that a model without text would ignore."""
        if self.data.embeddings_dir is not None:
            raise FieldError(
                "data.embeddings_dir",
                "has features of captions, but the model takes no text (`model.cross_attention_dim` is not set): "
                "omit it.",
            )
        if not has_classes and self.data.caption:
            raise FieldError(
                "data.caption",
                f"is {self.data.caption!r}, but the model takes no text: omit it, or set `model.cross_attention_dim` "
                "and `text_encoder`.",
            )
        if not has_classes and self.validation.prompts:
            raise FieldError(
                "validation.prompts",
                "cannot be used with a model without text and classes: omit them, and set "
                "`validation.num_validation_images` to the number of samples.",
            )

    def _check_text(self, encoder: TextEncoderRecipe) -> None:
        if encoder.from_pipeline and self.pretrained is None:
            raise FieldError("text_encoder.from_pipeline", "needs `pretrained`, the pipeline with the text encoder.")
        if encoder.train_text_encoder and self.data.embeddings_dir is not None:
            raise FieldError(
                "data.embeddings_dir", "has features of a frozen encoder; with it set `train_text_encoder: false`."
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
            raise FieldError("lora", "adapts a trained model: set `pretrained`, the pipeline to start from.")
        if self.trains_text_encoder:
            raise FieldError(
                "lora", "trains adapters of the U-Net only: set `text_encoder.train_text_encoder: false`."
            )
        trained = sorted({stage.levels for stage in self.stages})
        if len(trained) > 1:
            raise FieldError(
                "lora",
                f"cannot be combined with added levels: all stages must train the same number "
                f"of levels, not {trained}.",
            )
        if any(stage.frozen_levels for stage in self.stages):
            raise FieldError(
                "lora", "freezes the model itself: omit `frozen_levels`, and choose layers by `target_modules`."
            )

    def _check_optimizer(self) -> None:
        if self.optimizer.use_8bit_adam and self.channels_last:
            raise FieldError("channels_last", "cannot be true with `optimizer.use_8bit_adam`: leave it out.")
        if self.optimizer.name != "prodigy":
            return
        for position, stage in enumerate(self.stages):
            if stage.learning_rate < SMALLEST_PRODIGY_RATE:
                raise FieldError(
                    f"stages[{position}].learning_rate",
                    f"is {stage.learning_rate:g}, but Prodigy multiplies it with the step size that it estimates: set "
                    f"1.0, or at least {SMALLEST_PRODIGY_RATE}.",
                )
            scales = {"level_learning_rate_scales": stage.level_learning_rate_scales or (1.0,)}
            if self.trains_text_encoder and self.text_encoder is not None:
                for field in ("learning_rate_scale", "token_learning_rate_scale"):
                    scales[f"text_encoder.{field}"] = (getattr(self.text_encoder, field),)
            for field, values in scales.items():
                if any(value != 1.0 for value in values):
                    raise FieldError(
                        field,
                        f"is {list(values)}, but Prodigy estimates one step size for all parameters, which all have "
                        "the same learning rate: leave it out, or use the optimizer adamw or muon.",
                    )

    def _check_extra_losses(self) -> None:
        """Refuse extra losses that the model cannot have."""
        names = [stage.name for stage in self.stages]
        for name, part in self.extra_losses.items():
            for stage in part.stages or ():
                if stage not in names:
                    raise FieldError(f"{name}.stages", f"has {stage!r}; the stages are {', '.join(names)}.")
            if any(level.num_frames > 1 for level in self.level_configs):
                raise FieldError(name, "compares images, and this is a video model; omit it.")
        if self.alignment is not None:
            self._check_alignment(self.alignment)
        if self.perceptual is not None:
            if self.vae is not None:
                raise FieldError("perceptual", "compares images, and this model predicts latents; omit it.")
            for level in self.perceptual.levels or ():
                if not 0 <= level < len(self.levels):
                    raise FieldError("perceptual.levels", f"has {level}; levels are 0 to {len(self.levels) - 1}.")

    def _check_alignment(self, alignment: AlignmentRecipe) -> None:
        if not self.level_configs[0].has_mid_block:
            raise FieldError("alignment", "needs the middle block of level 0: set `levels[0].has_mid_block`.")
        for stage in self.stages:
            if stage.frozen_levels and (alignment.stages is None or stage.name in alignment.stages):
                raise FieldError(
                    "alignment.stages",
                    f"must name stages that train level 0; in {stage.name!r} it is frozen (`frozen_levels`).",
                )

    @property
    def extra_losses(self) -> dict[str, ExtraLossRecipe]:
        """The losses besides that of the pyramid, by name."""
        parts = {"alignment": self.alignment, "perceptual": self.perceptual}
        return {name: part for name, part in parts.items() if part is not None}

    @property
    def trains_text_encoder(self) -> bool:
        """Whether the text encoder is trained together with the U-Net."""
        return self.text_encoder is not None and self.text_encoder.train_text_encoder

    @property
    def max_sequence_length(self) -> int:
        """Number of tokens after which captions are truncated; 0 for a model without text."""
        return 0 if self.text_encoder is None else self.text_encoder.max_sequence_length

    @property
    def sample_size(self) -> int:
        """Side of level 0 in pixels, or in latents if there is a `vae`."""
        return int(self.model.get("sample_size", 64))

    @property
    def sides(self) -> tuple[int, ...]:
        """Side of every level, innermost first, in pixels or latents like `sample_size`."""
        return level_sides(self.sample_size, self.level_configs)

    @functools.cached_property
    def level_configs(self) -> tuple[LevelConfig, ...]:
        """The `LevelConfig` of every level, innermost first."""
        return tuple(
            read_fields(LevelConfig, level, f"levels[{position}]") for position, level in enumerate(self.levels)
        )
