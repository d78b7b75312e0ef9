# SPDX-License-Identifier: Apache-2.0
"""The optimizer of a recipe, and averages of the weights whose width is chosen after training."""

import dataclasses
from dataclasses import dataclass
from typing import Literal

from .fields import COUNT, NOT_NEGATIVE, POSITIVE, SHARE_BELOW_ONE, FieldError, Range, check_ranges

Precision = Literal["no", "fp16", "bf16"]


@dataclass(frozen=True)
class OptimizerRecipe:
    """Settings of the optimizer and of gradient clipping.

    `adam_*` apply to all optimizers: Prodigy is a variant of Adam, and beside Muon AdamW trains what is no matrix.
    """

    name: Literal["adamw", "muon", "prodigy"] = "adamw"
    use_8bit_adam: bool = False  # keep the moments of AdamW in 8 bits
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_epsilon: float = 1e-8
    adam_weight_decay: float = 0.0
    muon_momentum: float = 0.95
    prodigy_beta3: float | None = None  # decay of the estimate of the step size; None: the square root of adam_beta2
    prodigy_decouple: bool = True  # weight decay as in AdamW, instead of in the gradient
    prodigy_use_bias_correction: bool = True  # as in Adam
    prodigy_safeguard_warmup: bool = True  # keep the learning rate of a warm-up out of the estimate
    max_grad_norm: float = 2.0

    def __post_init__(self) -> None:
        check_ranges(
            self,
            {
                **dict.fromkeys(("adam_beta1", "adam_beta2", "muon_momentum", "prodigy_beta3"), SHARE_BELOW_ONE),
                **dict.fromkeys(("adam_epsilon", "adam_weight_decay"), NOT_NEGATIVE),
                "max_grad_norm": POSITIVE,
            },
        )
        if self.use_8bit_adam and self.name != "adamw":
            raise FieldError(
                "optimizer.use_8bit_adam", f"keeps the moments of AdamW in 8 bits; the optimizer is {self.name!r}."
            )
        if self.name == "prodigy" and self.adam_epsilon == 0:
            raise FieldError("optimizer.adam_epsilon", "must be above 0 for Prodigy.")
        for field in dataclasses.fields(self):
            owner = field.name.partition("_")[0]
            if owner in ("muon", "prodigy") and owner != self.name and getattr(self, field.name) != field.default:
                raise FieldError(
                    f"optimizer.{field.name}", f"has no effect on {self.name!r}; set `name: {owner}` or leave it out."
                )


@dataclass(frozen=True)
class PostHocEmaRecipe:
    """Keep power-function averages of the weights (Karras et al. 2024), from whose snapshots
    `training/reconstruct_ema.py` makes averages of any width.
    """

    sigma_rels: tuple[float, ...] = (0.05, 0.10)  # widths of the averages, relative to the length of training
    snapshot_steps: int = 500  # write a snapshot every so many steps, and at the end of every stage
    snapshots_total_limit: int | None = 16  # thin them out evenly when there are more; None: keep all

    def __post_init__(self) -> None:
        # Up to the width of the plain mean, 12^-1/2.
        widths = Range(0.01, 0.28)
        check_ranges(self, {"sigma_rels": widths, "snapshot_steps": COUNT, "snapshots_total_limit": Range(2)})
        if len(set(self.sigma_rels)) != len(self.sigma_rels) or len(self.sigma_rels) < 2:
            raise ValueError(
                f"`sigma_rels` must be at least two different widths, such as [0.05, 0.1], got "
                f"{list(self.sigma_rels)}; averages of other widths are made of them."
            )
