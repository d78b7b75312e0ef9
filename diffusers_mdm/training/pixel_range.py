# SPDX-License-Identifier: Apache-2.0
"""The range of pixels in files, and that of pixels that a model sees."""

import torch


def to_unit_range(pixels: torch.Tensor) -> torch.Tensor:
    """uint8 pixels 0..255 -> float32 in [-1, 1], the range the pipeline's pictures have."""
    return pixels.float() / 127.5 - 1.0
