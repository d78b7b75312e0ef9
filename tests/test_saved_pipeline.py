# SPDX-License-Identifier: Apache-2.0
"""A pipeline folder that an earlier version saved is still the pipeline it was.

`fixtures/saved_pipeline` was written by `save_pretrained` of a tiny pipeline at 5fb0aad, and beside it is what that
version drew with it.
"""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import diffusers_mdm
from diffusers_mdm import MDMPipeline
from diffusers_mdm.conversion.apple_mdm import to_apple_state_dict
from diffusers_mdm.training.commands.fine_tuning import recipe_for_pipeline
from diffusers_mdm.training.recipe.data import DataRecipe
from diffusers_mdm.training.recipe.recipe import PretrainedRecipe
from tests.pipelines.tiny_pipeline import draw, make_unet

SMALLER = {"has_attention_ffn": (False, False), "time_embed_dim": 16, "has_mid_block": (False, False)}


@pytest.fixture
def folder(fixtures_dir: Path) -> Path:
    return fixtures_dir / "saved_pipeline"


def test_it_loads_and_draws_what_it_drew(folder, fixtures_dir):
    pipeline = MDMPipeline.from_pretrained(folder)
    # The weights are random numbers, of which processors round the last digit differently.
    torch.testing.assert_close(pipeline.unet.state_dict(), make_unet(**SMALLER).state_dict(), rtol=1e-6, atol=1e-6)
    pipeline.set_progress_bar_config(disable=True)
    expected = load_file(fixtures_dir / "saved_pipeline_image.safetensors")["picture"]
    # Other processors sum in another order, and the random network makes more of it at each of two steps.
    torch.testing.assert_close(draw(pipeline), expected, rtol=0, atol=1e-4)


def test_it_converts_and_opens(folder):
    unet = MDMPipeline.from_pretrained(folder).unet
    foreign = to_apple_state_dict(unet.state_dict(), {})
    assert sum(value.numel() for value in foreign.values()) == sum(value.numel() for value in unet.parameters())
    assert unet.inner_model(1).num_levels == 1


def test_it_can_be_fine_tuned(folder):
    recipe = recipe_for_pipeline(PretrainedRecipe(path=str(folder)), DataRecipe(path="images"), steps=1)
    assert recipe.level_configs == make_unet(**SMALLER).level_configs


def test_the_public_names_are_these():
    """Names that programs import; a name goes only with a new major version."""
    assert sorted(diffusers_mdm.__all__) == [
        "DiffusionPipeline",
        "InnerLevelCacheConfig",
        "LevelConfig",
        "MDMClassConditionalPipeline",
        "MDMImg2ImgPipeline",
        "MDMInpaintPipeline",
        "MDMPipeline",
        "MDMPipelineOutput",
        "MDMSuperResolutionPipeline",
        "MDMUnconditionalPipeline",
        "MDMUpscalePipeline",
        "MDMVideoPipeline",
        "MDMVideoPipelineOutput",
        "MatryoshkaScheduler",
        "ModelMixin",
        "NestedUNetModel",
        "Pyramid",
        "SchedulerMixin",
        "TextConditioning",
        "build_pyramid",
        "pyramid_noise",
    ]
    assert all(hasattr(diffusers_mdm, name) for name in diffusers_mdm.__all__)
    imported = {name for name in vars(diffusers_mdm.public_names) if not name.startswith("_")}
    assert imported == set(diffusers_mdm.__all__)
