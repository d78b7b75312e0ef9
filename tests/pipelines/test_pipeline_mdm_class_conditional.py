# SPDX-License-Identifier: Apache-2.0
"""Class to image: guidance of 4 by default, as for ImageNet, and any number of images of each class."""

import torch

from diffusers_mdm import MDMPipelineOutput
from tests.pipelines.tiny_pipeline import seed
from tests.pipelines.tiny_tasks import task


def test_images_of_classes():
    pipe = task("class").make()
    settings = {"num_inference_steps": 2, "output_type": "pt"}
    output = pipe(["dog", 0], num_images_per_label=2, generator=[seed(number) for number in range(4)], **settings)
    assert isinstance(output, MDMPipelineOutput)
    assert output.images.shape == (4, 3, 16, 16)
    assert pipe.guidance_scale == 4.0
    alone = pipe(0, generator=seed(3), **settings).images
    torch.testing.assert_close(output.images[3:], alone, atol=1e-4, rtol=0)
