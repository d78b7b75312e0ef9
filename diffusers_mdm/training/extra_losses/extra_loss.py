# SPDX-License-Identifier: Apache-2.0
"""What an extra loss is, and what it is computed from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from ...models.nested_unet import NestedUNetModel
from ...pyramid import Pyramid


@dataclass(frozen=True)
class LossInputs:
    """What an optimizer step hands to the extra losses.

    Attributes:
        pixels: the images of the batch, uint8 `(B, 3, S, S)`, flipped and cropped as the model sees them.
        clean: their levels `(B_i, C, H_i, W_i)`, in [-1, 1] or of latents, innermost first.
        predicted: the clean levels that the model's predictions imply, with gradients, in the same shapes.
        powers: signal power of every sample, element i `(B_i,)`.
    """

    pixels: torch.Tensor
    clean: Pyramid
    predicted: Pyramid
    powers: Sequence[torch.Tensor]


class ExtraLoss(Protocol):
    """A loss that is added to that of the pyramid.

    Attributes:
        weight: its factor in the sum.
        stages: names of the stages that have it; None for all.
        trained: layers of its own that are trained together with the model. They are saved in checkpoints, but not in
            the finished pipeline. None for none.
    """

    weight: float
    stages: tuple[str, ...] | None
    trained: torch.nn.Module | None

    def attach(self, unet: NestedUNetModel) -> None:
        """Prepare for a stage, whose model is `unet`."""
        ...

    def detach(self) -> None:
        """Undo `attach` at the end of the stage."""
        ...

    def errors(self, inputs: LossInputs) -> torch.Tensor:
        """Return the error of each sample after a forward pass, `(B_0,)` float32, without its weight."""
        ...
