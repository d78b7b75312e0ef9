# SPDX-License-Identifier: Apache-2.0
"""What the text encoder of a pipeline writes before a run trains."""

import dataclasses

from accelerate import Accelerator

from diffusers_mdm.training.commands.fine_tuning import recipe_for_pipeline
from diffusers_mdm.training.data.sources import texts_of
from diffusers_mdm.training.data.text.features import TextEmbeddings
from diffusers_mdm.training.loop.text_features import write_own_embeddings
from diffusers_mdm.training.recipe.data import DataRecipe
from diffusers_mdm.training.recipe.pretrained import PretrainedRecipe, PriorRecipe
from diffusers_mdm.training.recipe.recipe import Recipe
from diffusers_mdm.training.state.run import RunOptions


def own_embeddings_recipe(pipeline_dir, images_dir, tmp_path) -> Recipe:
    recipe = recipe_for_pipeline(PretrainedRecipe(str(pipeline_dir)), DataRecipe(path="images"), 5)
    data = DataRecipe(path=str(images_dir), embeddings_dir=str(tmp_path / "features"))
    validation = dataclasses.replace(recipe.validation, prompts=("a red apple",))
    prior = PriorRecipe(str(tmp_path / "class"), "a house")
    return dataclasses.replace(recipe, data=data, validation=validation, prior_preservation=prior)


def test_own_embeddings_hold_every_text_of_the_run(pipeline_dir, images_dir, tmp_path):
    recipe = own_embeddings_recipe(pipeline_dir, images_dir, tmp_path)
    options = RunOptions(tmp_path, pre_compute_text_embeddings=True)
    write_own_embeddings(recipe, options, Accelerator())
    features = TextEmbeddings(tmp_path / "features")
    texts = list(texts_of(recipe))
    assert {"red ellipse", "a red apple", "a house"} <= set(texts)
    assert all(text in features for text in [*texts, ""])
    assert len(features) == len({*texts, ""})
    written = (tmp_path / "features" / "embeddings-00000.safetensors").stat().st_mtime_ns
    write_own_embeddings(recipe, options, Accelerator())  # nothing is left to do
    assert (tmp_path / "features" / "embeddings-00000.safetensors").stat().st_mtime_ns == written


def test_without_the_option_nothing_is_written(pipeline_dir, images_dir, tmp_path):
    write_own_embeddings(
        own_embeddings_recipe(pipeline_dir, images_dir, tmp_path), RunOptions(tmp_path), Accelerator()
    )
    assert list(tmp_path.iterdir()) == []
