# SPDX-License-Identifier: Apache-2.0
"""Frozen networks that are small enough for tests."""

import torch

from diffusers_mdm.training.extra_losses.frozen_networks import NETWORKS


class TinyMaps:
    """Two layers of fixed convolutions; the name "tiny" in recipes, once `register` has been called."""

    def __init__(self, side: int | None = None, device: torch.device | str = "cpu"):
        self.side = side or 8
        generator = torch.Generator().manual_seed(0)
        self.weights = [
            torch.randn(channels, before, 3, 3, generator=generator).to(device)
            for before, channels in ((3, 6), (6, 12))
        ]

    def __call__(self, images: torch.Tensor) -> list[torch.Tensor]:
        maps = [images]
        for weight in self.weights:
            maps.append(torch.nn.functional.conv2d(maps[-1], weight, stride=2, padding=1).tanh())
        return maps[1:]


def register(monkeypatch) -> None:
    """Make "tiny" a network of recipes, for the duration of a test."""
    monkeypatch.setitem(NETWORKS, "tiny", TinyMaps)
