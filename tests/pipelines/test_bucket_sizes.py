# SPDX-License-Identifier: Apache-2.0
"""Sizes that `drawing_defaults` names, besides those of squares: every pipeline generates them at all levels."""

from typing import Any

import pytest
import torch

from diffusers_mdm import (
    MDMClassConditionalPipeline,
    MDMImg2ImgPipeline,
    MDMInpaintPipeline,
    MDMPipeline,
    MDMUnconditionalPipeline,
    MDMUpscalePipeline,
)
from tests.pipelines.tiny_pipeline import make_pipeline, make_scheduler, seed
from tests.pipelines.tiny_tasks import make_class_unet, make_plain_unet

# The tiny models have levels of 8 and 16 pixels, and sizes that are multiples of 2 and 4.
BUCKETS = {"aspect_ratio_buckets": [[12, 20], [20, 12]]}
SETTINGS: dict[str, Any] = {"num_inference_steps": 2, "output_type": "pt", "output_pyramid": True}


def image(height: int, width: int) -> torch.Tensor:
    return torch.rand(1, 3, height, width, generator=seed(4))


def make(cls: type, **more: Any) -> Any:
    unet = make_class_unet() if cls is MDMClassConditionalPipeline else make_plain_unet()
    pipe = cls(unet=unet, scheduler=make_scheduler(), **{"drawing_defaults": BUCKETS, **more})
    pipe.set_progress_bar_config(disable=True)
    return pipe


INPUTS: dict[type, dict[str, Any]] = {
    MDMUnconditionalPipeline: {"height": 12, "width": 20},
    MDMClassConditionalPipeline: {"class_labels": 1, "height": 12, "width": 20},
    MDMImg2ImgPipeline: {"image": image(12, 20)},
    MDMInpaintPipeline: {"image": image(12, 20), "mask_image": torch.ones(1, 1, 12, 20)},
    MDMUpscalePipeline: {"image": image(6, 10)},
}


@pytest.mark.parametrize("cls", INPUTS)
def test_every_level_has_the_aspect_ratio(cls):
    pyramid = make(cls)(**INPUTS[cls], **SETTINGS).pyramid
    assert [tuple(level.shape[-2:]) for level in pyramid] == [(6, 10), (12, 20)]
    assert all(torch.isfinite(level).all() for level in pyramid)


def test_a_smaller_level_is_generated_alone_and_the_sizes_are_saved(tmp_path):
    pipe = make(MDMUnconditionalPipeline)
    small = pipe(height=10, width=6, **SETTINGS).images
    assert small.shape == (1, 3, 10, 6)
    assert MDMUpscalePipeline.from_pipe(pipe)(image=small, **SETTINGS).images.shape == (1, 3, 20, 12)
    pipe.save_pretrained(tmp_path)
    loaded = MDMUnconditionalPipeline.from_pretrained(tmp_path)
    assert loaded.aspect_ratio_buckets == ((12, 20), (20, 12))
    assert loaded(height=12, width=20, **SETTINGS).images.shape == (1, 3, 12, 20)


def test_an_image_is_resized_to_the_bucket_of_its_ratio():
    pipe = make(MDMImg2ImgPipeline)
    assert pipe(image=image(36, 60), **SETTINGS).images.shape == (1, 3, 12, 20)
    assert pipe(image=image(36, 36), **SETTINGS).images.shape == (1, 3, 16, 16)
    assert pipe(image=image(16, 12), **SETTINGS).images.shape == (1, 3, 16, 12)  # the size of a level, as without
    without = make(MDMImg2ImgPipeline, drawing_defaults=None)
    assert without(image=image(36, 60), **SETTINGS).images.shape == (1, 3, 8, 16)


def test_latents_are_those_of_the_size():
    pipe = make(MDMUnconditionalPipeline)
    noise = [torch.randn(1, 3, 6, 10, generator=seed(1)), torch.randn(1, 3, 12, 20, generator=seed(2))]
    assert pipe(latents=noise, **SETTINGS).images.shape == (1, 3, 12, 20)
    assert [tuple(level.shape) for level in pipe.prepare_latents(2, 12, 20, torch.float32, torch.device("cpu"))] == [
        (2, 3, 6, 10),
        (2, 3, 12, 20),
    ]


def test_other_sizes_are_refused():
    text = make_pipeline()
    with pytest.raises(ValueError, match="No level of this model has 12 x 20"):
        text("a cat", height=12, width=20)
    with pytest.raises(ValueError, match="or the size one of 12 x 20, 20 x 12, for smaller levels in proportion"):
        make(MDMUnconditionalPipeline)(height=20, width=20)
    wrong = MDMPipeline(**text.components, drawing_defaults={"aspect_ratio_buckets": [[10, 22]]})
    with pytest.raises(ValueError, match="positive multiples of 4"):
        wrong("a cat", height=10, width=22)
    for sizes in ([[12]], [[12, 0]], [12, 20], "12,20", [[1.5, 3]]):
        with pytest.raises(ValueError, match="`aspect_ratio_buckets` has to be a list of sizes"):
            make(MDMUnconditionalPipeline, drawing_defaults={"aspect_ratio_buckets": sizes})
