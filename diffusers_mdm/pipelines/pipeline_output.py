# SPDX-License-Identifier: Apache-2.0
"""What the pipelines return."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import PIL.Image
import torch
from diffusers.utils import BaseOutput

Images = list[PIL.Image.Image] | np.ndarray | torch.Tensor
Clips = list[list[PIL.Image.Image]] | np.ndarray | torch.Tensor


@dataclass
class MDMPipelineOutput(BaseOutput):
    """Pictures drawn by an MDM pipeline.

    Attributes:
        images: the pictures of the outermost level that was drawn, batch first: a list of PIL images, an array
            `(B, H, W, C)` in [0, 1], a tensor `(B, C, H, W)` in [0, 1], or for `output_type="latent"` the last
            sample `(B, C, H, W)` as the scheduler left it, around [-1, 1].
        pyramid: the same for every level that was drawn, innermost first (`pyramid[-1]` equals `images`), when it was
            asked for with `output_pyramid=True`.
    """

    images: Images
    pyramid: list[Images] | None = None


@dataclass
class MDMVideoPipelineOutput(BaseOutput):
    """Clips drawn by `MDMVideoPipeline`.

    Attributes:
        frames: the clips of the outermost level that was drawn, batch first: lists of PIL images, an array
            `(B, F, H, W, C)` in [0, 1], a tensor `(B, F, C, H, W)` in [0, 1], or for `output_type="latent"` the last
            sample `(B, C, F, H, W)` as the scheduler left it.
        pyramid: the same for every level that was drawn, innermost first (`pyramid[-1]` equals `frames`), when it was
            asked for with `output_pyramid=True`.
    """

    frames: Clips
    pyramid: list[Clips] | None = None
