# SPDX-License-Identifier: Apache-2.0
"""What every pipeline is: siblings share its parts untouched, and what it lacks is said before anything is drawn."""

import pytest
import torch
from diffusers.utils import logging as diffusers_logging

from diffusers_mdm import MDMImg2ImgPipeline, MDMPipeline
from diffusers_mdm.pyramid import pyramid_noise
from tests.pipelines.tiny_pipeline import draw, make_pipeline, seed


@pytest.fixture(scope="module")
def shared() -> MDMPipeline:
    return make_pipeline()


def test_siblings_take_every_part_in_its_own_precision_without_a_word(shared, caplog):
    pipe = MDMPipeline.from_pipe(shared, text_encoder=make_pipeline().text_encoder.to(torch.bfloat16))
    before = {name: id(parameter) for name, parameter in shared.unet.named_parameters()}
    diffusers_logging.add_handler(caplog.handler)  # diffusers' loggers do not propagate to the root
    try:
        sibling = MDMImg2ImgPipeline.from_pipe(pipe)
    finally:
        diffusers_logging.remove_handler(caplog.handler)
    assert not caplog.records
    assert (sibling.unet.dtype, sibling.text_encoder.dtype) == (torch.float32, torch.bfloat16)
    assert {name: id(parameter) for name, parameter in sibling.unet.named_parameters()} == before


def test_a_precision_that_is_asked_for_is_given():
    assert MDMPipeline.from_pipe(make_pipeline(), dtype=torch.bfloat16).unet.dtype == torch.bfloat16
    # Moving and casting work as ever afterwards.
    assert make_pipeline().to(torch.float16).unet.dtype == torch.float16


@pytest.mark.parametrize("name", ["unet", "scheduler"])
def test_without_a_part_it_cannot_draw(name):
    pipe = MDMPipeline(**{**make_pipeline().components, name: None})
    with pytest.raises(ValueError, match=f"This pipeline has no `{name}`, so it cannot draw"):
        draw(pipe)


def test_prepare_latents_draws_or_takes_noise(shared):
    sizes = (2, 16, 16, torch.float32, torch.device("cpu"))
    noise = pyramid_noise([(2, 3, 8, 8), (2, 3, 16, 16)], seed(0))
    drawn = shared.prepare_latents(*sizes, generator=seed(0))
    taken = shared.prepare_latents(*sizes, latents=noise)
    for first, second, expected in zip(drawn, taken, noise, strict=True):
        assert torch.equal(first, expected)
        assert torch.equal(second, expected)
    assert isinstance(shared.prepare_latents(1, 8, 8, *sizes[3:]), torch.Tensor)


def test_what_a_drawing_did_can_be_read_after_it(shared):
    draw(shared, num_inference_steps=3, guidance_scale=4.0, guidance_rescale=0.5)
    assert (shared.num_timesteps, shared.guidance_scale, shared.guidance_rescale) == (3, 4.0, 0.5)
    assert shared.do_classifier_free_guidance
    assert not shared.interrupt
    assert shared.cross_attention_kwargs is None


def test_a_copy_of_a_pipeline_draws_for_itself(shared):
    import copy

    other = copy.deepcopy(shared)
    assert torch.equal(draw(other), draw(shared))
    other._guidance_scale = 9.0
    assert shared.guidance_scale != 9.0
