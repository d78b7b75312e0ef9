# SPDX-License-Identifier: Apache-2.0
"""A perceptual loss: the predicted clean image and the true one have similar features in a frozen network."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ...models.nested_unet import NestedUNetModel
from ..recipe.stage import PerceptualRecipe
from .extra_loss import LossInputs
from .frozen_networks import FrozenNetwork, resized


class PerceptualLoss:
    """The mean over layers and places of |f(x0^) / |f(x0^)| - f(x0) / |f(x0)||^2, times the signal power.

    The normalised differences are those of LPIPS (Zhang et al. 2018, arXiv 1801.03924, section 3.1), with equal
    weights for all channels. From noisy samples only a blurred mean of the possible images can be predicted, which no
    true image looks like; so each error is multiplied by the signal power of its level.

    Args:
        recipe: its settings.
        network: the frozen network.
    """

    trained: torch.nn.Module | None = None

    def __init__(self, recipe: PerceptualRecipe, network: FrozenNetwork):
        self.weight, self.stages, self.levels, self.network = recipe.weight, recipe.stages, recipe.levels, network

    def attach(self, unet: NestedUNetModel) -> None:
        """Nothing has to be prepared."""

    def detach(self) -> None:
        """Nothing has to be undone."""

    def errors(self, inputs: LossInputs) -> torch.Tensor:
        """Return the sum over the compared levels of the errors, `(B_0,)`.

        Samples that a level does not have count zero there, the others B_0 / B_i times, as in the loss of the pyramid.
        """
        num_samples, outermost = len(inputs.clean[0]), len(inputs.clean) - 1
        total = inputs.clean[0].new_zeros(num_samples, dtype=torch.float32)
        for level in (outermost,) if self.levels is None else self.levels:
            if level > outermost:
                continue  # a level of a later stage
            errors = inputs.powers[level].float() * self._differences(inputs.predicted[level], inputs.clean[level])
            total = total + F.pad(errors, (0, num_samples - len(errors))) * (num_samples / len(errors))
        return total

    def _differences(self, predicted: torch.Tensor, clean: torch.Tensor) -> torch.Tensor:
        """Return the difference of features of each sample, `(B,)`, of images `(B, 3, H, W)` in [-1, 1]."""
        found = self.network(resized(predicted, self.network.side))
        with torch.no_grad():
            wanted = self.network(resized(clean, self.network.side))
        distances = [
            (F.normalize(one, dim=1) - F.normalize(other, dim=1)).square().sum(1).flatten(1).mean(1)
            for one, other in zip(found, wanted, strict=True)
        ]
        return torch.stack(distances).mean(0)
