# SPDX-License-Identifier: Apache-2.0
"""What the pipelines that start from pictures share, for models of texts and for models of classes."""

from __future__ import annotations

from diffusers_mdm.pipelines.drawing.image_inputs import Pictures
from diffusers_mdm.pipelines.drawing.known_pixels import KnownPixels
from diffusers_mdm.pipelines.pipeline_class_base import ClassPipelineBase
from diffusers_mdm.pyramid import Pyramid, build_pyramid


class PicturePipelineBase(ClassPipelineBase):
    """Starts from pictures: draws around them, over them, or inside a mask."""

    def know_pictures(self, pictures: Pictures, noise: Pyramid) -> KnownPixels:
        """Give the whole pictures as known, at their own level and, averaged, at all levels inside it.

        Args:
            pictures: as they were given; each is repeated for its share of the rows.
            noise: N(0, 1) `(B, C, H_i, W_i)` of every level that is drawn.
        """
        num_images, factor = len(noise[0]), self.vae_scale_factor
        pixels = pictures.pixels.to(self._execution_device, self.sample_dtype)
        pixels = pixels.repeat_interleave(num_images // len(pixels), dim=0)
        sides = [level.shape[-2] * factor for level in noise if level.shape[-2] * factor <= pixels.shape[-2]]
        pyramid = build_pyramid(pixels, sides)
        return KnownPixels.whole(pyramid, self.encode_pyramid(pyramid), noise)
