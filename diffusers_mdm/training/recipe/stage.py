# SPDX-License-Identifier: Apache-2.0
"""One stage of a recipe: which levels are trained, with which batch, learning rate and loss, and for how long."""

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from .fields import COUNT, NOT_NEGATIVE, POSITIVE, SHARE_BELOW_ONE, Range, check_ranges

# Limit of images per forward pass; a larger number is a typo, and would overflow.
BATCH = Range(1, 2**20)


@dataclass(frozen=True)
class PlateauRecipe:
    """End a stage when the smoothed validation loss of its outermost level, or another metric, stops improving.

    It is measured every `every_steps` steps. A measurement counts as a gain if it is better than the best one by the
    fraction `min_gain`; after `patience` measurements in a row without a gain, but not before `min_steps`, the stage
    ends.
    """

    every_steps: int
    patience: int = 5
    min_gain: float = 0.01
    smoothing: float = 0.5  # weight of earlier values in the running mean
    min_steps: int = 0
    metric: Literal["loss", "fid", "kid", "clip", "retrieval"] = "loss"  # others than "loss": of `validation.metrics`

    def __post_init__(self) -> None:
        check_ranges(
            self,
            {
                "every_steps": COUNT,
                "patience": COUNT,
                "min_gain": SHARE_BELOW_ONE,
                "smoothing": SHARE_BELOW_ONE,
                "min_steps": NOT_NEGATIVE,
            },
        )


MAX_LEVELS = 12  # of a recipe

_COLUMNS = ("level_weights", "batch_fractions", "level_learning_rate_scales")
_RANGES = {
    "levels": Range(1, MAX_LEVELS),  # lists with an entry for each are made of it
    **dict.fromkeys(("steps", "images", "gradient_accumulation_steps", "lr_num_cycles"), COUNT),
    **dict.fromkeys(("lr_warmup_steps", "frozen_levels", "new_level_ramp_steps", "joint_images"), NOT_NEGATIVE),
    "learning_rate": NOT_NEGATIVE,
    **dict.fromkeys(("level_weights", "level_learning_rate_scales", "noise_offset", "shift_power"), NOT_NEGATIVE),
    **dict.fromkeys(("lr_power", "snr_gamma", "p2_gamma", "p2_k", "timestep_bias_multiplier"), POSITIVE),
    **dict.fromkeys(("caption_dropout", "ema_decay"), SHARE_BELOW_ONE),
    "batch_size": BATCH,
    "joint_images": Range(0, BATCH.high),
    "batch_fractions": Range(0, 1, open_low=True),
    "timestep_bias_portion": Range(0, 1, open_low=True),
    "seed": Range(0, 2**63 - 1),
}


@dataclass(frozen=True)
class StageRecipe:
    """One stage of training: the inner `levels` levels. Lists are innermost first.

    It ends after `steps` optimizer steps, after `images` images over all processes, or by `until_plateau`; at least
    one of these must be set, and whichever comes first ends the stage.
    """

    # Older names of fields.
    RENAMED: ClassVar[Mapping[str, str]] = {"as_pictures": "as_images", "joint_pictures": "joint_images"}

    name: str
    levels: int
    batch_size: int  # images per forward pass and process
    learning_rate: float
    steps: int | None = None
    images: int | None = None
    until_plateau: PlateauRecipe | None = None
    gradient_accumulation_steps: int = 1
    as_images: bool = False  # train the levels of a video model on images, before they have frames
    joint_images: int = 0  # images to train on together with the clips, per forward pass; not counted in `batch_size`
    lr_scheduler: Literal[
        "constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial"
    ] = "cosine"
    lr_warmup_steps: int = 0
    lr_num_cycles: int = 1  # for "cosine_with_restarts"
    lr_power: float = 1.0  # for "polynomial"
    level_learning_rate_scales: tuple[float, ...] | None = None  # factor on the learning rate; None: 1 for every level
    frozen_levels: int = 0  # innermost levels that are not trained, nor is what levels share (text, classes)
    loss_weighting: Literal["epsilon", "v", "sample", "prediction", "sigmoid"] = "epsilon"
    # One for all levels, or one for each; see `error_weights` and `sigmoid_factors`:
    snr_gamma: float | tuple[float, ...] | None = None  # min-SNR weighting (Hang et al. 2023)
    p2_gamma: float | tuple[float, ...] | None = None  # P2 weighting (Choi et al. 2022)
    p2_k: float = 1.0  # its constant
    sigmoid_bias: float | tuple[float, ...] | None = None  # of `loss_weighting` "sigmoid"; None: 0
    level_weights: tuple[float, ...] | None = None  # None: 1 for every level
    new_level_ramp_steps: int = 0  # steps over which the loss weight of levels that are new in this stage rises from 0
    batch_fractions: tuple[float, ...] | None = (
        None  # fraction of the batch that each level is trained on; None: 1 for every level
    )
    shift_power: float | None = None  # shift of the noise schedule in this stage; None: the scheduler's own
    noise_offset: float = 0.0
    caption_dropout: float = 0.1  # fraction of captions replaced by "", for classifier-free guidance
    timestep_bias_strategy: Literal["none", "earlier", "later"] = "none"  # sample low or high t more often
    timestep_bias_portion: float = 0.25  # fraction of the range of t that is sampled more often
    timestep_bias_multiplier: float = 1.0  # how many times as often
    ema_decay: float = 0.9999  # upper limit, reached after a warm-up
    seed: int = 0

    def __post_init__(self) -> None:
        check_ranges(self, _RANGES)
        self._check_end()
        for field in (*_COLUMNS, "snr_gamma", "p2_gamma", "sigmoid_bias"):
            column = getattr(self, field)
            if isinstance(column, tuple) and len(column) != self.levels:
                raise ValueError(f"`{field}` needs {self.levels} entries, one per level, got {len(column)}.")
        if not 0 <= self.frozen_levels < self.levels:
            raise ValueError(
                f"`frozen_levels` must be 0 to {self.levels - 1}, so that at least one level is trained; got "
                f"{self.frozen_levels}."
            )
        if self.level_weights is not None and not any(self.level_weights):
            raise ValueError("`level_weights` are all 0, so nothing would be trained; set at least one above 0.")
        self._check_batch_fractions()
        self._check_weighting()

    def _check_weighting(self) -> None:
        """Refuse weightings that contradict each other."""
        if self.snr_gamma is not None and self.p2_gamma is not None:
            raise ValueError("`snr_gamma` and `p2_gamma` both lower the weight of almost clean images; set only one.")
        is_sigmoid = self.loss_weighting == "sigmoid"
        if is_sigmoid and (self.snr_gamma is not None or self.p2_gamma is not None):
            field = "p2_gamma" if self.snr_gamma is None else "snr_gamma"
            raise ValueError(
                f'`{field}` modifies another weighting, but `loss_weighting` "sigmoid" defines the weight at every '
                f"noise level by itself; omit `{field}`, and use `sigmoid_bias`."
            )
        if self.sigmoid_bias is not None and not is_sigmoid:
            raise ValueError(
                f'`sigmoid_bias` belongs to `loss_weighting` "sigmoid", but that is {self.loss_weighting!r}; omit '
                "one of them."
            )

    def _check_end(self) -> None:
        if self.steps is None and self.images is None and self.until_plateau is None:
            raise ValueError("a stage needs an end: set `steps`, `images` or `until_plateau`.")
        decays = self.lr_scheduler not in ("constant", "constant_with_warmup")
        if decays and self.steps is None and self.images is None:
            raise ValueError(
                f"`lr_scheduler` {self.lr_scheduler!r} needs a known last step: set `steps` or `images` as an "
                f"upper limit together with `until_plateau`, or use 'constant_with_warmup'."
            )

    def _check_batch_fractions(self) -> None:
        fractions = self.fractions
        thins = all(0 < outer <= inner for inner, outer in itertools.pairwise(fractions))
        if fractions[0] != 1.0 or not thins:
            raise ValueError(
                f"`batch_fractions` must start with 1.0 and not increase outwards, got {list(fractions)}."
            )
        if self.samples_per_level[-1] < 1:
            raise ValueError(
                f"`batch_fractions` leave level {self.levels - 1} no sample of a batch of {self.batch_size}."
            )

    @property
    def weights(self) -> tuple[float, ...]:
        """Loss weight of each level, innermost first."""
        return self.level_weights or (1.0,) * self.levels

    @property
    def fractions(self) -> tuple[float, ...]:
        """Fraction of the batch that each level is trained on, innermost first."""
        return self.batch_fractions or (1.0,) * self.levels

    @property
    def samples_per_level(self) -> tuple[int, ...]:
        """Batch size B_i of each level i, innermost first."""
        return tuple(int(fraction * self.batch_size) for fraction in self.fractions)

    @property
    def images_per_step(self) -> int:
        """Images per optimizer step on one process."""
        return self.batch_size * self.gradient_accumulation_steps

    def max_steps(self, num_processes: int = 1) -> int | None:
        """Return the maximum number of optimizer steps of the stage; None if only `until_plateau` ends it."""
        limits = [] if self.steps is None else [self.steps]
        if self.images is not None:
            limits.append(math.ceil(self.images / (self.images_per_step * num_processes)))
        return min(limits) if limits else None


@dataclass(frozen=True)
class AlignmentRecipe:
    """Representation alignment (REPA): features of level 0 resemble those of a frozen image encoder."""

    encoder: str  # "inception", or folder or Hub id of a vision model of transformers, such as DINOv2
    weight: float = 0.5
    hidden_channels: int = 512  # of the projection between the two, which is trained
    image_side: int | None = None  # side in pixels to which images are resized; None: the encoder's own
    stages: tuple[str, ...] | None = None  # names of the stages that have this loss; None: all

    def __post_init__(self) -> None:
        check_ranges(self, {"weight": POSITIVE, "hidden_channels": COUNT, "image_side": COUNT})


@dataclass(frozen=True)
class PerceptualRecipe:
    """A perceptual loss: features of a frozen network of the predicted clean image resemble those of the image."""

    network: str = "inception"  # or folder or Hub id of a vision model of transformers
    weight: float = 0.1
    image_side: int | None = None  # side in pixels to which images are resized; None: the network's own
    levels: tuple[int, ...] | None = None  # levels that are compared; None: the outermost of each stage
    stages: tuple[str, ...] | None = None  # names of the stages that have this loss; None: all

    def __post_init__(self) -> None:
        check_ranges(self, {"weight": POSITIVE, "image_side": COUNT})


ExtraLossRecipe = AlignmentRecipe | PerceptualRecipe
