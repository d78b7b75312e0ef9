# SPDX-License-Identifier: Apache-2.0
"""A training recipe: one YAML file that says what is trained, on what, and in which stages from the inside out."""

import dataclasses
import inspect
import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from ..models.level_config import LevelConfig
from ..models.nested_unet import NestedUNetModel
from ..schedulers.scheduling_matryoshka import MatryoshkaScheduler
from .recipe_fields import FieldError, read_fields

Precision = Literal["no", "fp16", "bf16"]


@dataclass(frozen=True)
class TokenizerRecipe:
    """A sub-word tokenizer that is trained on the captions; frequent words become single tokens."""

    vocab_size: int


@dataclass(frozen=True)
class TextEncoderRecipe:
    """Where the text encoder comes from: `pretrained` (folder or Hub id), or a new small T5 of the given size."""

    pretrained: str | None = None
    tokenizer: TokenizerRecipe | None = None
    d_model: int | None = None
    num_layers: int | None = None
    num_heads: int | None = None
    d_ff: int | None = None
    initializer_factor: float = 1.0  # of a new encoder, as in `T5Config`
    train_text_encoder: bool = False  # optimise it together with the U-Net
    # Learning rate of the token table over the stage's. A batch touches few of its rows, so that at the common rate a
    # table trained from scratch hardly leaves its random start.
    token_learning_rate_scale: float = 1.0

    def __post_init__(self) -> None:
        sizes = [self.tokenizer, self.d_model, self.num_layers, self.num_heads, self.d_ff]
        if self.pretrained is not None and any(size is not None for size in sizes):
            raise ValueError(
                "`pretrained` loads an encoder as it is; remove `tokenizer`, `d_model`, `num_layers`, `num_heads` "
                "and `d_ff`, or remove `pretrained` to start a new encoder of that size."
            )
        if self.pretrained is None and any(size is None for size in sizes):
            raise ValueError(
                "a new text encoder needs `tokenizer`, `d_model`, `num_layers`, `num_heads` and `d_ff`; "
                "or give `pretrained`, a folder or Hub id."
            )
        if self.pretrained is None and not self.train_text_encoder:
            raise ValueError("a new text encoder knows nothing: set `train_text_encoder: true`.")
        if self.d_model is not None and self.num_heads is not None and self.d_model % self.num_heads:
            raise ValueError(f"`d_model` {self.d_model} must be a multiple of `num_heads` {self.num_heads}.")
        for field in ("initializer_factor", "token_learning_rate_scale"):
            if getattr(self, field) <= 0:
                raise ValueError(f"`{field}` must be positive, got {getattr(self, field)}.")


@dataclass(frozen=True)
class DataRecipe:
    """A captioned image dataset: a folder (parquet files or an imagefolder) or a Hub dataset id."""

    path: str
    train_split: str = "train"
    image_column: str = "image"
    caption_column: str = "text"
    random_flip: bool = False


@dataclass(frozen=True)
class StageRecipe:
    """One stage of training: the inner `levels` levels, for `steps` optimizer steps. Lists are innermost first."""

    name: str
    levels: int
    steps: int
    batch_size: int  # images per forward pass and process
    learning_rate: float
    gradient_accumulation_steps: int = 1
    lr_scheduler: Literal["constant", "constant_with_warmup", "linear", "cosine"] = "cosine"
    lr_warmup_steps: int = 0
    loss_weighting: Literal["epsilon", "v"] = "epsilon"
    level_weights: tuple[float, ...] | None = None  # None: 1 for every level
    batch_fractions: tuple[float, ...] | None = None  # share of the batch's rows a level sees; None: all of them
    caption_dropout: float = 0.1  # share of captions replaced by "", for guidance without a classifier
    timestep_bias_strategy: Literal["none", "earlier", "later"] = "none"  # draw low or high t more often
    timestep_bias_portion: float = 0.25  # share of the range of t that is drawn more often
    timestep_bias_multiplier: float = 1.0  # how many times as often
    ema_decay: float = 0.9999  # upper limit, reached by a warm-up
    seed: int = 0

    def __post_init__(self) -> None:
        for field in ("levels", "steps", "batch_size", "gradient_accumulation_steps"):
            if getattr(self, field) < 1:
                raise ValueError(f"`{field}` must be at least 1, got {getattr(self, field)}.")
        for field in ("level_weights", "batch_fractions"):
            column = getattr(self, field)
            if column is not None and len(column) != self.levels:
                raise ValueError(f"`{field}` needs {self.levels} entries, one a level, got {len(column)}.")
        if not 0 <= self.caption_dropout < 1 or not 0 <= self.ema_decay < 1:
            raise ValueError("`caption_dropout` and `ema_decay` must lie in [0, 1).")
        if not 0 < self.timestep_bias_portion <= 1 or self.timestep_bias_multiplier <= 0:
            raise ValueError("`timestep_bias_portion` must lie in (0, 1], `timestep_bias_multiplier` above 0.")
        self._check_batch_fractions()

    def _check_batch_fractions(self) -> None:
        fractions = self.fractions
        thins = all(0 < outer <= inner for inner, outer in itertools.pairwise(fractions))
        if fractions[0] != 1.0 or not thins:
            raise ValueError(f"`batch_fractions` must start with 1.0 and not grow outwards, got {list(fractions)}.")
        if self.rows_per_level[-1] < 1:
            raise ValueError(f"`batch_fractions` leave level {self.levels - 1} no row of {self.batch_size} images.")

    @property
    def weights(self) -> tuple[float, ...]:
        """Loss weight of each level, innermost first."""
        return self.level_weights or (1.0,) * self.levels

    @property
    def fractions(self) -> tuple[float, ...]:
        """Share of the batch each level sees, innermost first."""
        return self.batch_fractions or (1.0,) * self.levels

    @property
    def rows_per_level(self) -> tuple[int, ...]:
        """Rows B_i of a batch that level i sees, innermost first."""
        return tuple(int(fraction * self.batch_size) for fraction in self.fractions)

    @property
    def images_per_step(self) -> int:
        """Images of one optimizer step on one process."""
        return self.batch_size * self.gradient_accumulation_steps


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
    """Pictures drawn at every checkpoint with the averaged weights."""

    prompts: tuple[str, ...] = ()
    num_inference_steps: int = 25
    guidance_scale: float = 3.0


@dataclass(frozen=True)
class Recipe:
    """A whole run. `model` holds `NestedUNetModel` arguments that are not per level; `levels` its rows."""

    name: str
    model: dict[str, Any]
    levels: tuple[dict[str, Any], ...]  # `LevelConfig` rows, innermost first
    text_encoder: TextEncoderRecipe
    data: DataRecipe
    stages: tuple[StageRecipe, ...]
    scheduler: dict[str, Any] = dataclasses.field(default_factory=dict)
    optimizer: OptimizerRecipe = OptimizerRecipe()
    validation: ValidationRecipe = ValidationRecipe()
    mixed_precision: Precision = "no"
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
        self._check_text_width()
        before = 1
        for position, stage in enumerate(self.stages):
            if not before <= stage.levels <= len(self.levels):
                raise FieldError(
                    f"stages[{position}].levels", f"must be {before} to {len(self.levels)}, got {stage.levels}."
                )
            before = stage.levels

    def _check_text_width(self) -> None:
        width, inside = self.text_encoder.d_model, self.model.get("cross_attention_dim")
        if inside is None:
            raise FieldError("model.cross_attention_dim", "must be set: the model would not see the captions.")
        expected = self.model.get("encoder_hid_dim") or inside
        if width is not None and width != expected:
            raise FieldError(
                "text_encoder.d_model",
                f"is {width}, but the model takes {expected} (`model.encoder_hid_dim`, or without it "
                "`model.cross_attention_dim`).",
            )

    @property
    def sample_size(self) -> int:
        """Side of level 0 in pixels."""
        return int(self.model.get("sample_size", 64))

    @property
    def rows(self) -> tuple[LevelConfig, ...]:
        """The level rows, innermost first."""
        return tuple(read_fields(LevelConfig, row, f"levels[{position}]") for position, row in enumerate(self.levels))


def load_recipe(path: str | Path) -> Recipe:
    """Read and check a recipe file; a relative `data.path` or `text_encoder.pretrained` is looked up beside it.

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
    data = dataclasses.replace(recipe.data, path=_beside(path, recipe.data.path))
    encoder = recipe.text_encoder
    if encoder.pretrained is not None:
        encoder = dataclasses.replace(encoder, pretrained=_beside(path, encoder.pretrained))
    return dataclasses.replace(recipe, data=data, text_encoder=encoder)


def _beside(recipe_path: Path, name: str) -> str:
    local = recipe_path.parent / name
    return str(local.resolve()) if local.exists() else name


def _argument_names(cls: type) -> set[str]:
    return set(inspect.signature(cls.__init__).parameters) - {"self"}  # type: ignore[misc]


def _refuse_unknown(where: str, values: dict[str, Any], known: set[str]) -> None:
    for name in values:
        if name not in known:
            raise FieldError(
                f"{where}.{name}", f"is not a known field; here one can write {', '.join(sorted(known))}."
            )
