# SPDX-License-Identifier: Apache-2.0
"""Pipelines for models of classes: their names are kept in the config. Pipelines that also take models of nothing."""

from typing import Any

import pytest
import torch

from diffusers_mdm import (
    MDMClassConditionalPipeline,
    MDMImg2ImgPipeline,
    MDMInpaintPipeline,
    MDMUpscalePipeline,
    MDMVideoPipeline,
)
from tests.pipelines.tiny_pipeline import make_scheduler, seed
from tests.pipelines.tiny_tasks import CLIPS, ID2LABEL, eight_bit_images, make_class_unet, make_plain_unet, masks


def test_names_are_part_of_the_config():
    pipe = MDMClassConditionalPipeline(make_class_unet(), make_scheduler(), id2label=ID2LABEL)
    assert pipe.config["id2label"] == {str(number): name for number, name in ID2LABEL.items()}
    assert pipe.classes.id2label == pipe.id2label == ID2LABEL
    pipe.register_labels(None)
    assert pipe.id2label == ID2LABEL


@pytest.mark.parametrize("labels", [None, 0])
def test_a_model_of_neither_texts_nor_classes_has_its_own_pipeline(labels):
    pipe = MDMClassConditionalPipeline(make_plain_unet(), make_scheduler())
    with pytest.raises(ValueError, match="neither texts nor classes; use MDMUnconditionalPipeline"):
        pipe(labels)


UNCONDITIONAL: dict[str, tuple[type, dict[str, Any], dict[str, Any]]] = {
    "upscale": (MDMUpscalePipeline, {}, {"image": eight_bit_images(8)[:2]}),
    "img2img": (MDMImg2ImgPipeline, {}, {"image": eight_bit_images(16)[:2]}),
    "inpaint": (MDMInpaintPipeline, {}, {"image": eight_bit_images(16)[:2], "mask_image": masks(16)[:1]}),
    "video": (MDMVideoPipeline, CLIPS, {"num_videos_per_prompt": 2}),
}


@pytest.mark.parametrize("name", UNCONDITIONAL)
def test_a_model_without_conditions_runs_once_a_step(name):
    cls, shape, inputs = UNCONDITIONAL[name]
    pipe = cls(make_plain_unet(**shape), make_scheduler(), drawing_defaults={"guidance_scale": 5.0})
    pipe.set_progress_bar_config(disable=True)
    sizes = []
    pipe.unet.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0][0])))
    settings = {"num_inference_steps": 2, "output_type": "pt", "generator": [seed(0), seed(1)]}
    images = pipe(**inputs, **settings, return_dict=False)[0]
    assert len(images) == 2
    assert torch.isfinite(images).all()
    assert set(sizes) == {2}
    for changes, message in (
        ({"guidance_scale": 2.0}, "this model takes neither"),
        ({"guider": "interval"}, "this model takes neither"),
        ({"prompt": "a"}, "omit prompts"),
        ({"class_labels": 1}, "omit labels"),
    ):
        with pytest.raises(ValueError, match=message):
            pipe(**inputs, **settings, **changes)
