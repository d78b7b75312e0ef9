# SPDX-License-Identifier: Apache-2.0
"""What a run starts from, and what it then learns in place of the whole model: adapters, or one subject."""

from dataclasses import dataclass
from typing import Literal

from .fields import COUNT, NOT_NEGATIVE, POSITIVE, SHARE_BELOW_ONE, Range, check_ranges


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
        check_ranges(self, {"rank": Range(1, 2**16), "alpha": POSITIVE, "dropout": SHARE_BELOW_ONE})
        if self.target_modules == ():
            raise ValueError("`target_modules` is empty: name layers, or leave it out for the attention projections.")


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
        check_ranges(self, {"num_class_images": COUNT, "sample_batch_size": COUNT, "weight": NOT_NEGATIVE})
