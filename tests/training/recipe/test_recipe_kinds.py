# SPDX-License-Identifier: Apache-2.0
"""Kinds of recipes: models of classes, which see no text, adapters, and the shipped ones."""

import dataclasses

import pytest
import torch

from diffusers_mdm import MDMClassConditionalPipeline
from diffusers_mdm.models.nested_unet import NestedUNetModel
from diffusers_mdm.training.data.batch import Batch, replace_by_empty
from diffusers_mdm.training.loop.engine import run_recipe
from diffusers_mdm.training.recipe.loading import load_recipe
from diffusers_mdm.training.recipe.recipe import LoraRecipe, PretrainedRecipe, Recipe
from diffusers_mdm.training.recipe.text_encoder import TextEncoderRecipe
from diffusers_mdm.training.state.run import RunOptions
from tests.training.labelled_images import class_recipe, write_labelled
from tests.training.tiny_run import RECIPES, learning_stage


@pytest.fixture(scope="module")
def labelled_dir(images_dir, tmp_path_factory):
    return write_labelled(images_dir, tmp_path_factory.mktemp("labelled"), names=None)


def test_it_trains_without_text_and_learns_its_classes(labelled_dir, tmp_path):
    recipe = class_recipe(labelled_dir)
    stages = tuple(dataclasses.replace(stage, caption_dropout=0.5, learning_rate=1e-2) for stage in recipe.stages)
    recipe = dataclasses.replace(recipe, stages=stages, use_ema=False)
    options = RunOptions(output_dir=tmp_path, report_to=None, checkpointing_steps=1, checkpoints_total_limit=None)
    run_recipe(recipe, options)
    assert not (tmp_path / "text_encoder").exists()
    pipeline = MDMClassConditionalPipeline.from_pretrained(tmp_path)
    assert (pipeline.text_encoder, pipeline.id2label) == (None, {})
    first = NestedUNetModel.from_pretrained(tmp_path / "checkpoint-1" / "unet").class_embedding.weight
    last = NestedUNetModel.from_pretrained(tmp_path / "unet").class_embedding.weight
    # With half of the classes dropped, the embedding of none, the last one, learns too.
    assert not torch.equal(first[:3], last[:3])
    assert not torch.equal(first[3], last[3])


def test_dropped_rows_are_of_no_class():
    batch = Batch(torch.zeros(3, 3, 2, 2), ["", "", ""], torch.arange(3), class_labels=torch.tensor([0, 1, 2]))
    dropped = replace_by_empty(batch, torch.tensor([False, True, False]), null_class=3)
    assert dropped.class_labels.tolist() == [0, 3, 2]
    assert batch.class_labels.tolist() == [0, 1, 2]
    assert replace_by_empty(batch, torch.tensor([True] * 3)).class_labels.tolist() == [0, 1, 2]


def test_classes_need_a_column_and_text_an_encoder(labelled_dir):
    recipe = class_recipe(labelled_dir)
    with pytest.raises(ValueError, match=r"data\.label_column.*num_class_embeds"):
        dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, label_column=None))
    with pytest.raises(ValueError, match=r"data\.label_column"):
        dataclasses.replace(recipe, model={**recipe.model, "num_class_embeds": None})
    with pytest.raises(ValueError, match="text_encoder"):
        dataclasses.replace(recipe, model={**recipe.model, "cross_attention_dim": 16})
    with pytest.raises(ValueError, match=r"model\.cross_attention_dim"):
        dataclasses.replace(recipe, text_encoder=load_recipe(RECIPES / "tiny.yaml").text_encoder)
    assert (recipe.max_sequence_length, recipe.trains_text_encoder) == (0, False)


# --- adapters ---


def lora_recipe(**fields) -> Recipe:
    tiny = load_recipe(RECIPES / "tiny.yaml")
    settings = {
        "pretrained": PretrainedRecipe("somewhere"),
        "text_encoder": TextEncoderRecipe(from_pipeline=True),
        "stages": (learning_stage(levels=2),),
        "lora": LoraRecipe(),
        **fields,
    }
    return dataclasses.replace(tiny, **settings)


def test_adapters_cannot_grow():
    assert lora_recipe().stages[0].levels == 2
    with pytest.raises(ValueError, match=r"`lora` cannot be combined with added levels.*\[1, 2\]"):
        lora_recipe(stages=(learning_stage(levels=1), learning_stage(levels=2)))
    same = lora_recipe(stages=(learning_stage(levels=2), learning_stage(levels=2, name="two")))
    assert len(same.stages) == 2


def test_adapters_need_a_model_and_are_all_that_learns():
    with pytest.raises(ValueError, match="set `pretrained`"):
        lora_recipe(pretrained=None, text_encoder=TextEncoderRecipe(pretrained="encoder"))
    with pytest.raises(ValueError, match="train_text_encoder: false"):
        lora_recipe(text_encoder=TextEncoderRecipe(from_pipeline=True, train_text_encoder=True))
    with pytest.raises(ValueError, match="frozen_levels"):
        lora_recipe(stages=(learning_stage(levels=2, frozen_levels=1),))


# --- the shipped recipes ---


def shipped(name: str) -> Recipe:
    return load_recipe(RECIPES / f"{name}.yaml")


@pytest.mark.parametrize(("small", "large"), [("cc12m_64", "cc12m_256"), ("imagenet_64", "imagenet_256")])
def test_a_larger_recipe_goes_on_where_the_smaller_one_ends(small, large):
    small, large = shipped(small), shipped(large)
    assert large.model == small.model
    assert large.levels[:1] == small.levels
    assert large.stages[:1] == small.stages
    assert large.optimizer == small.optimizer


def test_the_emoji_of_256_pixels_have_the_inner_level_of_the_demo_model():
    small, large = shipped("emoji_64"), shipped("emoji_256")
    assert (large.model, large.levels[0], large.text_encoder) == (small.model, small.levels[0], small.text_encoder)
    assert large.sides == (16, 64, 256)
    assert len(large.scheduler["prediction_type"]) == len(large.levels) == large.stages[-1].levels
    middle, outer = large.level_configs[1:]
    assert (
        256 // outer.patch_size == 2 * 64 // middle.patch_size
    )  # its coarser features have the places of the inner ones


def test_the_largest_differs_from_the_middle_one_as_published():
    middle, large = shipped("cc12m_256"), shipped("cc12m_1024")
    assert large.levels[0] == middle.levels[0]
    assert large.levels[1] == {**middle.levels[1], "normalize_input": True}
    assert (middle.scheduler["shift_power"], large.scheduler["shift_power"]) == (1.0, 2.0)
    assert [dataclasses.replace(stage, name="") for stage in large.stages[:2]] == [
        dataclasses.replace(stage, name="") for stage in middle.stages
    ]
    assert large.stages[2].weights == (1.0, 4.0, 16.0)
    assert middle.stages[1].samples_per_level == (24, 16)


def test_shipped_recipes_have_the_published_hyper_parameters():
    for name in ("cc12m_64", "cc12m_256", "cc12m_1024"):
        recipe = shipped(name)
        assert recipe.optimizer.max_grad_norm == 2.0
        assert recipe.max_sequence_length == 128
        for stage in recipe.stages:
            assert (stage.learning_rate, stage.lr_warmup_steps, stage.ema_decay) == (5e-5, 10000, 0.9999)
            assert stage.loss_weighting == "epsilon"
        assert recipe.stages[0].batch_size == 32
