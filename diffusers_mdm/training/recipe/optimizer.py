# SPDX-License-Identifier: Apache-2.0
"""The optimizer of a recipe."""

from dataclasses import dataclass
from typing import Literal

from .fields import NOT_NEGATIVE, POSITIVE, SHARE_BELOW_ONE, check_ranges

Precision = Literal["no", "fp16", "bf16"]


@dataclass(frozen=True)
class OptimizerRecipe:
    """Settings of AdamW and of gradient clipping."""

    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_epsilon: float = 1e-8
    adam_weight_decay: float = 0.0
    max_grad_norm: float = 2.0

    def __post_init__(self) -> None:
        check_ranges(
            self,
            {
                **dict.fromkeys(("adam_beta1", "adam_beta2"), SHARE_BELOW_ONE),
                **dict.fromkeys(("adam_epsilon", "adam_weight_decay"), NOT_NEGATIVE),
                "max_grad_norm": POSITIVE,
            },
        )
