# SPDX-License-Identifier: Apache-2.0
"""A run begins with the models of its recipe, the same for the same seed, or not at all."""

import dataclasses

import pytest
import torch

from diffusers_mdm.training.loop.start import (
    build_unet,
    check_conditions,
    check_growth,
    check_lora_levels,
    open_text_encoder,
    start_run,
)
from diffusers_mdm.training.recipe.pretrained import LoraRecipe, PretrainedRecipe
from diffusers_mdm.training.recipe.text_encoder import TextEncoderRecipe
from diffusers_mdm.training.state.run import Run, RunOptions
from tests.pipelines.tiny_pipeline import make_unet
from tests.training.tiny_run import tiny_recipe


@pytest.fixture(scope="module")
def recipe(images_dir):
    return tiny_recipe(images_dir)


def started(recipe, output_dir, **options) -> Run:
    return start_run(recipe, RunOptions(output_dir, report_to=None, **options))


def assert_equal(one: torch.nn.Module, other: torch.nn.Module, is_equal: bool = True) -> None:
    found, expected = one.state_dict(), other.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in found.items()) == is_equal


def test_the_seed_decides_on_the_weights_whatever_was_drawn_before(recipe, tmp_path):
    run = started(recipe, tmp_path, seed=1)
    torch.rand(7)
    again, other = started(recipe, tmp_path, seed=1), started(recipe, tmp_path, seed=2)
    for name, module in run.trained_modules.items():
        assert_equal(module, again.trained_modules[name])
        assert_equal(module, other.trained_modules[name], is_equal=False)
    assert run.unet.num_levels == recipe.stages[0].levels
    assert (run.start, run.progress.total_steps) == (None, 0)


def test_a_new_model_is_silent_where_the_recipe_says_so(recipe):
    for zero_init in (True, False):
        unet = build_unet(dataclasses.replace(recipe, zero_init=zero_init), 2)
        is_silent = [not bool(level.decoder.conv_out.weight.any()) for level in unet.levels]
        assert is_silent == [zero_init] * 2


def test_captions_that_come_encoded_need_no_encoder(recipe):
    encoded = dataclasses.replace(recipe.data, embeddings_dir="features")
    saved = TextEncoderRecipe(pretrained="somebody/t5")
    assert open_text_encoder(dataclasses.replace(recipe, data=encoded, text_encoder=saved)) == (None, None)


@pytest.mark.parametrize("name", ["checkpoint-5", "elsewhere"])
def test_what_cannot_begin_writes_nothing(recipe, tmp_path, name):
    with pytest.raises(ValueError, match=name):
        started(recipe, tmp_path / "out", resume_from_checkpoint=name)
    assert not (tmp_path / "out").exists() or list((tmp_path / "out").iterdir()) == []


def test_other_classes_than_those_of_the_pipeline_are_refused(recipe):
    with pytest.raises(ValueError, match=r"`model\.num_class_embeds` of the recipe is None, .* has 4"):
        check_conditions(recipe, make_unet(num_class_embeds=4))


def test_lora_adapts_levels_that_there_are(recipe):
    outer = dataclasses.replace(recipe, stages=recipe.stages[1:])
    check_lora_levels(outer, make_unet())
    with pytest.raises(ValueError, match="the stages train 2, but the pipeline has 1"):
        check_lora_levels(outer, make_unet().inner_model(1))


def test_images_become_clips_with_all_weights_only(recipe):
    unet = make_unet(block_out_channels=((32, 32), (32, 32)))
    check_growth(recipe, unet)  # no frames, nothing to do
    rows = [
        {**level, "num_frames": 2, "block_out_channels": [32, 32], "temporal_layers_per_block": [1, 0]}
        for level in recipe.levels
    ]
    clips = dataclasses.replace(
        recipe, levels=tuple(rows), data=dataclasses.replace(recipe.data, video_column="video")
    )
    check_growth(clips, unet.inner_model(1))  # as the first stage has it
    lora = dataclasses.replace(
        clips,
        stages=clips.stages[1:],
        lora=LoraRecipe(),
        pretrained=PretrainedRecipe("somewhere"),
        text_encoder=TextEncoderRecipe(from_pipeline=True),
    )
    with pytest.raises(ValueError, match="LoRA adapts a trained video model, but this is an image pipeline"):
        check_growth(lora, unet)
