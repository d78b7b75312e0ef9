# SPDX-License-Identifier: Apache-2.0
"""A training recipe: one YAML file that says what is trained, on what, and in which stages from the inside out."""

import dataclasses
import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from ...models.level_config import LevelConfig
from ...models.nested_unet import NestedUNetModel
from ...schedulers.scheduling_matryoshka import MatryoshkaScheduler
from .clips import check_clips, data_of
from .fields import FieldError, read_fields
from .stage import StageRecipe
from .vae import VaeRecipe

Precision = Literal["no", "fp16", "bf16"]


@dataclass(frozen=True)
class TokenizerRecipe:
    """A sub-word tokenizer that is trained on the captions; frequent words become single tokens."""

    vocab_size: int


@dataclass(frozen=True)
class TextEncoderRecipe:
    """Where the text encoder comes from: `pretrained` (folder or Hub id), or a new small T5 of the given size."""

    pretrained: str | None = None
    from_pipeline: bool = False  # the encoder of the recipe's `pretrained` pipeline
    tokenizer: TokenizerRecipe | None = None
    d_model: int | None = None
    num_layers: int | None = None
    num_heads: int | None = None
    d_ff: int | None = None
    initializer_factor: float = 1.0  # of a new encoder, as in `T5Config`
    train_text_encoder: bool = False  # optimise it together with the U-Net
    max_sequence_length: int = 128  # longer captions are cut
    learning_rate_scale: float = 1.0  # learning rate of the encoder over the stage's
    # Learning rate of the token table over the stage's. A batch touches few of its rows, so that at the common rate a
    # table trained from scratch hardly leaves its random start.
    token_learning_rate_scale: float = 1.0

    def __post_init__(self) -> None:
        sizes = [self.tokenizer, self.d_model, self.num_layers, self.num_heads, self.d_ff]
        if self.pretrained is not None and self.from_pipeline:
            raise ValueError("`pretrained` and `from_pipeline` each name an encoder; keep one of them.")
        saved = self.pretrained is not None or self.from_pipeline
        if saved and any(size is not None for size in sizes):
            raise ValueError(
                "`pretrained` and `from_pipeline` load an encoder as it is; remove `tokenizer`, `d_model`, "
                "`num_layers`, `num_heads` and `d_ff`, or start a new encoder of that size."
            )
        if not saved and any(size is None for size in sizes):
            raise ValueError(
                "a new text encoder needs `tokenizer`, `d_model`, `num_layers`, `num_heads` and `d_ff`; "
                "or give `pretrained`, a folder or Hub id."
            )
        if not saved and not self.train_text_encoder:
            raise ValueError("a new text encoder knows nothing: set `train_text_encoder: true`.")
        if self.d_model is not None and self.num_heads is not None and self.d_model % self.num_heads:
            raise ValueError(f"`d_model` {self.d_model} must be a multiple of `num_heads` {self.num_heads}.")
        for field in ("initializer_factor", "token_learning_rate_scale", "learning_rate_scale", "max_sequence_length"):
            if getattr(self, field) <= 0:
                raise ValueError(f"`{field}` must be positive, got {getattr(self, field)}.")


@dataclass(frozen=True)
class DataRecipe:
    """Captioned pictures or clips: a folder or Hub dataset id, or WebDataset shards.

    Folders hold parquet files, or picture or clip files beside a metadata file with their captions.
    """

    path: str | None = None
    shards: tuple[str, ...] | None = None  # tar files; {000..123} in a name stands for many
    config_name: str | None = None
    train_split: str = "train"
    validation_split: str | None = None  # held out, for the validation loss
    validation_shards: tuple[str, ...] | None = None  # the same, where `shards` are trained on
    image_column: str = "image"
    # Set, the data are clips, in this column. Shards have no columns: any name says that their samples hold clips.
    video_column: str | None = None
    frame_stride: int | None = None  # every k-th frame of a clip; None: spread evenly over the whole of it
    caption_column: str = "text"
    caption: str | None = None  # of every picture, in place of a column
    label_column: str | None = None  # class of every picture, for models with classes
    max_train_samples: int | None = None
    random_flip: bool = False
    center_crop: bool = True  # of the square; otherwise cropped at random
    image_interpolation_mode: Literal["area", "lanczos", "bicubic", "bilinear", "nearest"] = "area"
    micro_conditioning_offsets: dict[str, float] = dataclasses.field(default_factory=dict)
    min_image_side: int = 0  # smaller pictures are skipped
    max_skipped_images: int = 100  # corrupt or too small ones, before the run stops
    shuffle_buffer: int = 1000  # samples of the shards that are shuffled together
    embeddings_dir: str | None = None  # of training/precompute_text_embeddings.py

    def __post_init__(self) -> None:
        if (self.path is None) == (self.shards is None):
            raise ValueError("give either `path` (a folder or Hub dataset) or `shards` (WebDataset tar files).")
        if self.shards is not None and (self.validation_split is not None or self.max_train_samples is not None):
            raise ValueError(
                "`shards` have neither splits nor a number of pictures: name fewer shards in place of "
                "`max_train_samples`, and others as `validation_shards` in place of `validation_split`."
            )
        if self.shards is None and self.validation_shards is not None:
            raise ValueError("`validation_shards` go with `shards`; beside `path` give `validation_split`.")
        for field in ("min_image_side", "max_skipped_images"):
            if getattr(self, field) < 0:
                raise ValueError(f"`{field}` must not be negative, got {getattr(self, field)}.")
        if self.frame_stride is not None and (self.video_column is None or self.frame_stride < 1):
            raise ValueError(
                f"`frame_stride` is {self.frame_stride}: expected at least 1, and `video_column`, which says that the "
                "data are clips, beside it."
            )
        if self.shuffle_buffer < 1 or (self.max_train_samples is not None and self.max_train_samples < 1):
            raise ValueError("`shuffle_buffer` and `max_train_samples` must be at least 1.")

    @property
    def media_column(self) -> str:
        """The column that is trained on: that of the clips, or without one that of the pictures."""
        return self.image_column if self.video_column is None else self.video_column

    @property
    def has_validation(self) -> bool:
        """Whether pictures are held out."""
        return self.validation_split is not None or self.validation_shards is not None


@dataclass(frozen=True)
class PretrainedRecipe:
    """A saved pipeline that the run starts from, a folder or Hub id; its levels are the inner ones of the recipe's."""

    path: str
    revision: str | None = None
    variant: str | None = None


@dataclass(frozen=True)
class LoraRecipe:
    """Train low-rank adapters of the U-Net and nothing else."""

    rank: int = 4
    alpha: float | None = None  # None: the rank
    dropout: float = 0.0
    target_modules: tuple[str, ...] | None = None  # None: the attention projections

    def __post_init__(self) -> None:
        if self.rank < 1 or not 0 <= self.dropout < 1:
            raise ValueError("`rank` must be at least 1 and `dropout` lie in [0, 1).")


@dataclass(frozen=True)
class PriorRecipe:
    """Prior preservation (DreamBooth): pictures of the subject's class, drawn by the model before it learns."""

    class_data_dir: str
    class_prompt: str
    num_class_images: int = 100
    weight: float = 1.0
    sample_batch_size: int = 4
    precision: Literal["fp32", "fp16", "bf16"] | None = None  # to draw in; None: that of the run

    def __post_init__(self) -> None:
        if self.num_class_images < 1 or self.sample_batch_size < 1:
            raise ValueError("`num_class_images` and `sample_batch_size` must be at least 1.")
        if self.weight < 0:
            raise ValueError(f"`weight` must not be negative, got {self.weight}.")


@dataclass(frozen=True)
class OptimizerRecipe:
    """AdamW and the limit of the gradient's norm."""

    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_epsilon: float = 1e-8
    adam_weight_decay: float = 0.0
    max_grad_norm: float = 2.0


@dataclass(frozen=True)
class ValidationRecipe:
    """What is drawn at every checkpoint, and measured on held-out pictures, with the averaged weights."""

    prompts: tuple[str, ...] = ()  # of a model of classes: their names or numbers
    num_inference_steps: int = 25
    guidance_scale: float = 3.0
    num_validation_images: int = 1  # a prompt
    num_loss_images: int = 64  # of the validation split, for the validation loss


@dataclass(frozen=True)
class Recipe:
    """A whole run. `model` holds `NestedUNetModel` arguments that are not per level; `levels` its rows."""

    name: str
    model: dict[str, Any]
    levels: tuple[dict[str, Any], ...]  # `LevelConfig` rows, innermost first
    data: DataRecipe
    stages: tuple[StageRecipe, ...]
    pictures: DataRecipe | None = None  # of a model of clips: what is trained on beside them, and before there are any
    text_encoder: TextEncoderRecipe | None = None  # None: for models of classes, which see no text
    pretrained: PretrainedRecipe | None = None
    vae: VaeRecipe | None = None  # for a model of latents
    lora: LoraRecipe | None = None
    prior_preservation: PriorRecipe | None = None
    scheduler: dict[str, Any] = dataclasses.field(default_factory=dict)
    optimizer: OptimizerRecipe = OptimizerRecipe()
    validation: ValidationRecipe = ValidationRecipe()
    mixed_precision: Precision = "no"
    use_ema: bool = True
    channels_last: bool = True
    zero_init: bool = True  # start with silent residual branches and output, as the published models do

    def __post_init__(self) -> None:
        row_fields = {field.name for field in dataclasses.fields(LevelConfig)}
        _refuse_unknown("model", self.model, _argument_names(NestedUNetModel) - row_fields)
        _refuse_unknown("scheduler", self.scheduler, _argument_names(MatryoshkaScheduler))
        if not self.levels or not self.stages:
            raise FieldError("levels" if not self.levels else "stages", "must list at least one entry.")
        base = self.scheduler.get("base_sample_size", self.sample_size)
        if base != self.sample_size:
            raise FieldError("scheduler.base_sample_size", f"is {base}, but level 0 has {self.sample_size} pixels.")
        if self.scheduler.get("prediction_type", "v_prediction") != "v_prediction":
            raise FieldError("scheduler.prediction_type", "must be 'v_prediction', which is what the loss compares.")
        if self.vae is not None and self.vae.from_pipeline and self.pretrained is None:
            raise FieldError("vae.from_pipeline", "needs `pretrained`, the pipeline whose autoencoder it is.")
        self._check_conditions()
        self._check_stages()
        self._check_lora()
        check_clips(self)

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
        if has_classes and self.model["num_class_embeds"] < 2:
            raise FieldError("model.num_class_embeds", "must be at least 2: one for a class, the last one for none.")
        if sees_text and self.text_encoder is None:
            raise FieldError("text_encoder", "is missing; the model takes text (`model.cross_attention_dim` is set).")
        if not sees_text and (self.text_encoder is not None or not has_classes):
            raise FieldError(
                "model.cross_attention_dim",
                "must be set: the model would not see the captions. A model of classes alone has no `text_encoder`, "
                "but `model.num_class_embeds` and `data.label_column`.",
            )
        if self.prior_preservation is not None and (not sees_text or has_classes or self.data.path is None):
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
        """Captions are cut after so many tokens; 0 for a model without text."""
        return 0 if self.text_encoder is None else self.text_encoder.max_sequence_length

    @property
    def sample_size(self) -> int:
        """Side of level 0 in pixels, or in latents where there is a `vae`."""
        return int(self.model.get("sample_size", 64))

    @property
    def rows(self) -> tuple[LevelConfig, ...]:
        """The level rows, innermost first."""
        return tuple(read_fields(LevelConfig, row, f"levels[{position}]") for position, row in enumerate(self.levels))


def load_recipe(path: str | Path) -> Recipe:
    """Read and check a recipe file; the relative paths in it are looked up beside it first.

    Raises:
        ValueError: if the file is not YAML, or a field is unknown, missing, of a wrong type or impossible together
            with another; the message names the file and the field.
    """
    path = Path(path)
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        recipe = read_fields(Recipe, values)
        recipe.rows  # noqa: B018  rows are checked when they are built
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error
    data, pictures = _data_beside(path, recipe.data), recipe.pictures
    if pictures is not None:
        pictures = _data_beside(path, pictures)
    encoder = recipe.text_encoder
    if encoder is not None and encoder.pretrained is not None:
        encoder = dataclasses.replace(encoder, pretrained=_beside(path, encoder.pretrained))
    pretrained, prior, vae = recipe.pretrained, recipe.prior_preservation, recipe.vae
    if pretrained is not None:
        pretrained = dataclasses.replace(pretrained, path=_beside(path, pretrained.path))
    if prior is not None:
        prior = dataclasses.replace(prior, class_data_dir=_beside(path, prior.class_data_dir))
    if vae is not None and vae.pretrained is not None:
        vae = dataclasses.replace(vae, pretrained=_beside(path, vae.pretrained))
    return dataclasses.replace(
        recipe,
        data=data,
        pictures=pictures,
        text_encoder=encoder,
        pretrained=pretrained,
        prior_preservation=prior,
        vae=vae,
    )


def _data_beside(recipe_path: Path, data: DataRecipe) -> DataRecipe:
    if data.path is not None:
        data = dataclasses.replace(data, path=_beside(recipe_path, data.path))
    if data.embeddings_dir is not None:
        data = dataclasses.replace(data, embeddings_dir=_beside(recipe_path, data.embeddings_dir))
    shards, held_out = (
        None if patterns is None else tuple(_shards_beside(recipe_path, name) for name in patterns)
        for patterns in (data.shards, data.validation_shards)
    )
    return dataclasses.replace(data, shards=shards, validation_shards=held_out)


def _beside(recipe_path: Path, name: str) -> str:
    local = recipe_path.parent / name
    return str(local.resolve()) if local.exists() else name


def _shards_beside(recipe_path: Path, pattern: str) -> str:
    """A tar pattern relative to the recipe, if its folder is there; braces need not name existing files."""
    if "://" in pattern or Path(pattern).is_absolute():
        return pattern
    folder = recipe_path.parent / Path(pattern).parent
    return str(folder.resolve() / Path(pattern).name) if folder.is_dir() else pattern


def _argument_names(cls: type) -> set[str]:
    return set(inspect.signature(cls.__init__).parameters) - {"self"}  # type: ignore[misc]


def _refuse_unknown(where: str, values: dict[str, Any], known: set[str]) -> None:
    for name in values:
        if name not in known:
            raise FieldError(
                f"{where}.{name}", f"is not a known field; here one can write {', '.join(sorted(known))}."
            )
