# SPDX-License-Identifier: Apache-2.0
"""The blocks of diffusers' modular pipelines give the images of MDMPipeline."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import ModularPipeline
from diffusers.modular_pipelines import ModularPipelineBlocks, SequentialPipelineBlocks

from diffusers_mdm import MDMPipeline
from diffusers_mdm.modular import (
    MDMBlocks,
    MDMDecodeStep,
    MDMDenoiseStep,
    MDMModularPipeline,
    MDMPrepareNoiseStep,
    MDMSetTimestepsStep,
    MDMTextEncoderStep,
)
from tests.pipelines.tiny_pipeline import make_pipeline, seed

PROMPTS = ["a red apple", "the very sad cat of a house"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    make_pipeline().save_pretrained(folder)
    index = json.loads((folder / "model_index.json").read_text())
    index["drawing_defaults"] = {"num_inference_steps": 3, "guidance_scale": 2.0}
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


@pytest.fixture(scope="module")
def plain(folder) -> MDMPipeline:
    pipeline = MDMPipeline.from_pretrained(folder, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def modular(folder) -> ModularPipeline:
    pipeline = ModularPipeline.from_pretrained(str(folder))
    pipeline.load_components(dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def assert_same(images: torch.Tensor, expected: torch.Tensor) -> None:
    """Weights that are loaded twice are the same, but their place in memory may change the order of sums."""
    torch.testing.assert_close(images, expected, atol=1e-5, rtol=0)


def test_a_folder_of_a_pipeline_is_loaded(modular, plain):
    assert type(modular) is MDMModularPipeline
    assert type(modular.blocks) is MDMBlocks
    assert modular.vae is None
    assert modular.config["drawing_defaults"] == {"num_inference_steps": 3, "guidance_scale": 2.0}


@pytest.mark.parametrize(
    "call",
    [
        {"prompt": PROMPTS},
        {"prompt": PROMPTS[0], "negative_prompt": "blue", "num_images_per_prompt": 2, "guidance_scale": [3.0, 1.0]},
        {"prompt": PROMPTS[0], "height": 8, "guidance_scale": 1.0, "eta": 1.0},
        {"prompt": PROMPTS, "timesteps": [900, 400, 10], "guider": "projected", "level_agreement": 1.0},
        {"prompt": PROMPTS[0], "guidance_rescale": 0.5, "micro_conditioning": {"scale": 4.0}, "height": 16},
    ],
    ids=["prompts of two lengths", "negative prompt", "inner level alone", "guider", "micro-conditioning"],
)
def test_same_images_as_the_pipeline(modular, plain, call):
    expected = plain(**call, generator=seed(0), output_type="pt", output_pyramid=True)
    state = modular(**call, generator=seed(0), output_type="pt")
    assert len(state.pyramid) == len(expected.pyramid)
    for level, wanted in zip(state.pyramid, expected.pyramid, strict=True):
        assert_same(level, wanted)
    assert_same(state.images, expected.images)


def test_text_can_be_encoded_elsewhere(modular, plain, folder):
    """As with a text encoder on another machine: its block alone, then the other blocks without it."""
    texts = MDMTextEncoderStep().init_pipeline(str(folder))
    texts.load_components(dtype=torch.float32)
    state = texts(prompt=PROMPTS[0])
    steps = {"timesteps": MDMSetTimestepsStep, "noise": MDMPrepareNoiseStep, "loop": MDMDenoiseStep}
    rest = SequentialPipelineBlocks.from_blocks_dict({**steps, "decode": MDMDecodeStep}).init_pipeline(str(folder))
    rest.update_components(unet=modular.unet, scheduler=modular.scheduler)
    assert not hasattr(rest, "text_encoder")
    images = rest(state=state, generator=seed(0), output_type="pt", output="images")
    assert_same(images, plain(PROMPTS[0], generator=seed(0), output_type="pt").images)


class GreyPrediction(ModularPipelineBlocks):
    """A block of one's own in the loop: removes all colour from the prediction of the outermost level."""

    def __call__(self, components, block_state, i, t):
        outer = block_state.prediction[-1]
        block_state.prediction = [*block_state.prediction[:-1], outer.mean(dim=1, keepdim=True).expand_as(outer)]
        return components, block_state


def test_a_block_can_be_put_into_the_loop(modular, folder):
    blocks = MDMBlocks()
    blocks.sub_blocks["denoise"].sub_blocks.insert("grey", GreyPrediction(), 1)
    pipeline = blocks.init_pipeline(str(folder))
    pipeline.update_components(**{name: modular.components[name] for name in modular.component_names if name != "vae"})
    changed = pipeline(prompt=PROMPTS[0], generator=seed(0), output_type="pt", output="pyramid")
    usual = modular(prompt=PROMPTS[0], generator=seed(0), output_type="pt", output="pyramid")
    assert not torch.allclose(changed[-1], usual[-1], atol=1e-3)


def test_a_modular_pipeline_is_saved_and_loaded(modular, tmp_path):
    modular.save_pretrained(str(tmp_path), overwrite_modular_index=True)
    again = ModularPipeline.from_pretrained(str(tmp_path))
    again.load_components(dtype=torch.float32)
    assert type(again) is MDMModularPipeline
    call = {"prompt": PROMPTS[0], "output_type": "pt", "output": "images"}
    assert_same(again(**call, generator=seed(0)), modular(**call, generator=seed(0)))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"prompt": PROMPTS[0], "height": 7}, r"No level of this model has 7 x 7 pixels"),
        ({"prompt": PROMPTS[0], "num_inference_steps": 0}, r"`num_inference_steps` has to be a whole number"),
        ({"prompt": PROMPTS[0], "output_type": "jpg"}, r"`output_type` has to be one of pil, np, pt, latent"),
        ({"prompt": PROMPTS[0], "guidance_scale": "3"}, r"`guidance_scale` has to be a finite number"),
        ({"prompt": PROMPTS[0], "latents": [torch.zeros(1, 3, 8, 8)], "height": 16}, r"`latents` has 1 level"),
    ],
)
def test_bad_inputs_are_named(modular, call, message):
    with pytest.raises(ValueError, match=message):
        modular(**{"num_inference_steps": 1, **call})


def test_guidance_without_negative_prompts_is_named(modular, plain):
    text = plain.encode_prompt(PROMPTS[0], do_classifier_free_guidance=False)[0]
    steps = {"timesteps": MDMSetTimestepsStep, "noise": MDMPrepareNoiseStep, "loop": MDMDenoiseStep}
    rest = SequentialPipelineBlocks.from_blocks_dict(steps).init_pipeline()
    rest.update_components(unet=modular.unet, scheduler=modular.scheduler)
    with pytest.raises(ValueError, match="no `negative_prompt_embeds`, which guidance needs"):
        rest(prompt_embeds=text, guidance_scale=3.0, num_inference_steps=1)
