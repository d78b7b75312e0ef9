# SPDX-License-Identifier: Apache-2.0
"""Representation alignment: the middle features of level 0 resemble those of a frozen image encoder.

"Representation Alignment for Generation" (Yu et al. 2024, arXiv 2410.06940) does so for transformers. As "U-REPA"
(Tian et al. 2025, arXiv 2503.18414) does for U-Nets, the features are those of the middle block, which are projected
first and then enlarged to the places of the encoder.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import nn

from ...models.level import Level
from ...models.nested_unet import NestedUNetModel
from ..recipe.stage import AlignmentRecipe
from .extra_loss import LossInputs
from .frozen_networks import FrozenNetwork, resized


class AlignmentLoss:
    """1 - the mean cosine similarity, over all places, of projected features of level 0 and those of the encoder.

    Args:
        recipe: its settings.
        channels: channels of the middle block of level 0.
        encoder: the frozen encoder; its last map is used.
        device: device of the projection.
    """

    def __init__(
        self, recipe: AlignmentRecipe, channels: int, encoder: FrozenNetwork, device: torch.device | str = "cpu"
    ):
        self.weight, self.stages, self.encoder = recipe.weight, recipe.stages, encoder
        with torch.no_grad():
            width = encoder(torch.zeros(1, 3, encoder.side, encoder.side, device=device))[-1].shape[1]
        hidden = recipe.hidden_channels
        self.trained: nn.Module | None = nn.Sequential(
            nn.Conv2d(channels, hidden, 1),
            nn.SiLU(),
            nn.Conv2d(hidden, hidden, 1),
            nn.SiLU(),
            nn.Conv2d(hidden, width, 1),
        ).to(device)
        self._hook: Any = None
        self._projected: torch.Tensor | None = None

    def attach(self, unet: NestedUNetModel) -> None:
        """Project the features of the middle block in every forward pass with gradients."""
        middle = cast(Level, unet.levels[0]).decoder.mid_block
        if middle is None:
            raise ValueError("`alignment` needs the middle block of level 0: set `levels[0].has_mid_block`.")
        self._hook = middle.register_forward_hook(self._project)

    def _project(self, middle: nn.Module, inputs: Any, features: torch.Tensor) -> None:
        if torch.is_grad_enabled():
            self._projected = cast(nn.Module, self.trained)(features)

    def detach(self) -> None:
        """Stop projecting."""
        self._hook.remove()
        self._hook, self._projected = None, None

    def errors(self, inputs: LossInputs) -> torch.Tensor:
        """Return 1 - cosine similarity of each sample, `(B_0,)`, after a forward pass of the model."""
        if self._projected is None:
            raise RuntimeError("The model has not run since `attach`, or without gradients.")
        projected, self._projected = self._projected.float(), None
        with torch.no_grad():
            wanted = self.encoder(resized(inputs.pixels.float() / 127.5 - 1, self.encoder.side))[-1]
        enlarged = F.interpolate(projected, wanted.shape[-2:], mode="bilinear", align_corners=False)
        return 1 - F.cosine_similarity(enlarged, wanted, dim=1).flatten(1).mean(1)
