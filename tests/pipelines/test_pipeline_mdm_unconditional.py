# SPDX-License-Identifier: Apache-2.0
"""Unconditional pipeline: as many images as requested, no guidance, and models with conditions refused."""

import inspect

import pytest
import torch
from diffusers import DiffusionPipeline

from diffusers_mdm import MDMClassConditionalPipeline, MDMPipeline, MDMUnconditionalPipeline, MDMUpscalePipeline
from tests.pipelines.tiny_pipeline import make_scheduler, make_unet, seed
from tests.pipelines.tiny_tasks import make_class_unet, make_plain_unet, task

SETTINGS = {"num_inference_steps": 2, "output_type": "pt"}


@pytest.fixture(scope="module")
def pipe():
    made = MDMUnconditionalPipeline(make_plain_unet(), make_scheduler(), drawing_defaults={"guidance_scale": 3.0})
    made.set_progress_bar_config(disable=True)
    return made


def test_batch_size_is_the_number_of_images(pipe):
    rows = []
    hook = pipe.unet.register_forward_pre_hook(lambda module, args: rows.append(len(args[0][0])))
    images = pipe(batch_size=3, generator=[seed(number) for number in range(3)], **SETTINGS).images
    hook.remove()
    assert images.shape == (3, 3, 16, 16)
    assert set(rows) == {3}  # without guidance, whatever the folder says
    alone = pipe(generator=seed(2), **SETTINGS).images
    torch.testing.assert_close(images[2:], alone, atol=1e-4, rtol=0)
    assert pipe(height=8, **SETTINGS).images.shape == (1, 3, 8, 8)
    assert len(pipe(2, num_inner_steps=2, output_pyramid=True, **SETTINGS).pyramid) == 2


@pytest.mark.parametrize(
    ("unet", "instead"), [(make_unet, "MDMPipeline"), (make_class_unet, "MDMClassConditionalPipeline")]
)
def test_models_with_conditions_are_refused(unet, instead):
    conditioned = MDMUnconditionalPipeline(unet(), make_scheduler())
    with pytest.raises(ValueError, match=f"use {instead}"):
        conditioned()


def test_other_pipelines_name_this_one(pipe):
    with pytest.raises(ValueError, match="MDMUnconditionalPipeline"):
        MDMPipeline(None, None, pipe.unet, pipe.scheduler)("a cat")
    with pytest.raises(ValueError, match="MDMUnconditionalPipeline"):
        MDMClassConditionalPipeline(pipe.unet, pipe.scheduler)(0)
    with pytest.raises(ValueError, match="takes no text"):
        pipe.encode_prompt("a cat")


@pytest.mark.parametrize("batch_size", [0, -1, 1.5, "2", None])
def test_bad_batch_size(pipe, batch_size):
    with pytest.raises(ValueError, match="`batch_size` has to be a whole number"):
        pipe(batch_size=batch_size)


def test_its_components_upscale_too(pipe):
    upscale = MDMUpscalePipeline.from_pipe(pipe)
    assert upscale.unet is pipe.unet
    small = pipe(height=8, generator=seed(0), **SETTINGS).images
    assert upscale(image=small, **SETTINGS).images.shape == (1, 3, 16, 16)
    assert MDMUnconditionalPipeline.from_pipe(upscale).unet is pipe.unet


def test_it_has_no_arguments_of_guidance_or_conditions():
    arguments = set(inspect.signature(MDMUnconditionalPipeline.__call__).parameters)
    others = set(inspect.signature(type(task("text").make()).__call__).parameters)
    assert arguments - others == {"batch_size"}
    assert not {name for name in arguments if "prompt" in name or "guid" in name or "label" in name}
    assert issubclass(MDMUnconditionalPipeline, DiffusionPipeline)
