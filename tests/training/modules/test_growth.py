# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from diffusers_mdm.training.data.batch import Batch
from diffusers_mdm.training.loop.stage_setup import begin_stage, end_stage
from diffusers_mdm.training.loop.start import build_unet, start_run
from diffusers_mdm.training.loop.step import optimizer_step, plan_steps
from diffusers_mdm.training.modules.growth import grow_model
from diffusers_mdm.training.recipe.loading import load_recipe
from diffusers_mdm.training.state.optimizer import trained_parameters, whole_optimizer_state
from diffusers_mdm.training.state.run import RunOptions
from tests.training.tiny_clips import video_recipe
from tests.training.tiny_run import RECIPES


@pytest.fixture(scope="module")
def recipe():
    return load_recipe(RECIPES / "tiny.yaml")


def test_grown_model_begins_with_the_old_one(recipe):
    unet = build_unet(recipe, 1)
    grown = grow_model(unet, recipe.level_configs[1])
    old, new = list(unet.named_parameters()), list(grown.named_parameters())
    assert grown.num_levels == 2
    assert len(new) > len(old)
    for (old_name, old_value), (new_name, new_value) in zip(old, new, strict=False):
        assert old_name == new_name
        assert torch.equal(old_value, new_value)


def test_averages_and_moments_follow_their_parameters_into_clips(clips_dir, images_dir, tmp_path):
    """Layers that connect frames stand in the midst of the old ones, so that positions change; names do not."""
    recipe = video_recipe(clips_dir, images_dir)
    run = start_run(recipe, RunOptions(output_dir=tmp_path, report_to=None))
    images, clips = recipe.stages[:2]
    begin_stage(run, images)
    pixels = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)
    optimizer_step(run, plan_steps(run, images), [Batch(pixels, ["red line"] * 4, torch.arange(4))])
    old_names = list(run.averaged_parameters("unet"))
    for number, name in enumerate(old_names):
        run.ema["unet"].shadows[name].fill_(number)
    weights = {name: value.detach().clone() for name, value in run.unet.named_parameters()}
    end_stage(run, run.recipe.stages[0])
    moments = dict(run.optimizer_state)

    begin_stage(run, clips)
    names = list(run.averaged_parameters("unet"))
    assert names != old_names
    assert names[: len(old_names)] != old_names
    new = dict(run.unet.named_parameters())
    assert list(run.ema["unet"].shadows) == names
    for name, shadow in run.ema["unet"].shadows.items():
        if name in weights:
            assert torch.equal(new[name], weights[name])
            assert (shadow == old_names.index(name)).all()
        else:
            assert ".temporal_attentions." in name
            assert torch.equal(shadow, new[name])
    state = whole_optimizer_state(run.optimizer.optimizer, trained_parameters(run))
    assert state.keys() == moments.keys()
    assert all(torch.equal(value, state[name]) for name, value in moments.items())
    assert any(value.abs().sum() > 0 for name, value in moments.items() if name.endswith("exp_avg"))
