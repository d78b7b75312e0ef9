# SPDX-License-Identifier: Apache-2.0
import copy
import re

import pytest
import torch
import yaml

from diffusers_mdm.training.recipe.loading import load_recipe
from diffusers_mdm.training.state.run import memory_format_on
from tests.training.tiny_run import RECIPES


def edited(path: str, value: object) -> dict:
    """The tiny recipe's mapping with the entry at a dotted path replaced."""
    recipe = copy.deepcopy(yaml.safe_load((RECIPES / "tiny.yaml").read_text()))
    *parents, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    place = recipe
    for parent in parents:
        place = place[parent]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return recipe


def written(tmp_path, recipe: dict):
    path = tmp_path / "edited.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_recipes_load(path):
    recipe = load_recipe(path)
    assert recipe.name == path.stem
    assert len(recipe.level_configs) == len(recipe.levels) == recipe.stages[-1].levels


def test_the_recipe_in_the_documentation_loads(tmp_path):
    page = (RECIPES.parents[1] / "docs" / "training" / "recipes.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    whole = [block for block in blocks if block.startswith("name:")]
    assert whole
    for block in whole:
        file = tmp_path / "printed.yaml"
        file.write_text(block, encoding="utf-8")
        assert load_recipe(file).stages


def test_models_of_classes_need_no_caption(tmp_path):
    recipe = yaml.safe_load((RECIPES / "imagenet_64.yaml").read_text(encoding="utf-8"))
    assert "caption" not in recipe["data"]
    assert load_recipe(written(tmp_path, recipe)).data.caption == ""


def test_a_key_that_is_given_twice_is_refused(tmp_path):
    path = tmp_path / "twice.yaml"
    path.write_text((RECIPES / "tiny.yaml").read_text(encoding="utf-8") + "name: again\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"twice\.yaml.*name"):
        load_recipe(path)


def test_anchors_that_would_grow_without_bound_are_refused(tmp_path):
    lines = ["a0: &a0 [x, x]", *(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 60)), "name: *a59"]
    path = tmp_path / "bomb.yaml"
    path.write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(ValueError, match=r"bomb\.yaml"):
        load_recipe(path)


def test_relative_data_path_is_looked_up_beside_the_recipe():
    recipe = load_recipe(RECIPES / "tiny.yaml")
    assert recipe.data.path == str((RECIPES.parent / "data" / "emoji-styles-64").resolve())


def test_unknown_path_stays_a_hub_id(tmp_path):
    recipe = load_recipe(written(tmp_path, edited("data.path", "someone/emoji")))
    assert recipe.data.path == "someone/emoji"


MISTAKES = [
    ("stages.0.learnig_rate", 1.0, "learnig_rate"),
    ("stages.0.steps", ..., "needs an end"),
    ("stages.0.steps", "many", "stages[0].steps"),
    ("stages.0.steps", True, "stages[0].steps"),
    ("stages.0.steps", 0, "steps"),
    ("stages.0.learning_rate", "1e-3", "1.0e-3"),
    ("stages.0.lr_scheduler", "sine", "stages[0].lr_scheduler"),
    ("stages.0.caption_dropout", 1.5, "caption_dropout"),
    ("stages.0.levels", 3, "stages[0].levels"),
    ("stages.1.levels", 1, "level_weights"),
    ("stages.1.level_weights", [1.0, 1.0, 1.0], "level_weights"),
    ("stages.1.batch_fractions", [0.5, 1.0], "batch_fractions"),
    ("stages.1.batch_fractions", [1.0, 0.1], "no sample of a batch"),
    ("stages.0.lr_num_cycles", 0, "lr_num_cycles"),
    ("stages.1.frozen_levels", 2, "frozen_levels"),
    ("stages.1.level_learning_rate_scales", [1.0], "level_learning_rate_scales"),
    ("stages.1.snr_gamma", -1.0, "snr_gamma"),
    ("stages.0.until_plateau", {"every_steps": 2}, "validation_split"),
    ("stages.0.until_plateau", {"every_steps": 0}, "every_steps"),
    ("stages", [], "stages"),
    ("stages.0.levels", 10**9, "levels"),
    ("data.path", ..., "shards"),
    ("data.image_interpolation_mode", "sharp", "data.image_interpolation_mode"),
    ("lora", {"rank": 0}, "rank"),
    ("text_encoder.from_pipeline", True, "from_pipeline"),
    ("levels.1.channels", [8], "levels[1].channels"),
    ("model.sample_sise", 8, "model.sample_sise"),
    ("model.block_out_channels", [[8]], "model.block_out_channels"),
    ("model.cross_attention_dim", ..., "model.cross_attention_dim"),
    ("text_encoder.d_model", 24, "text_encoder.d_model"),
    ("text_encoder.num_layers", ..., "num_layers"),
    ("text_encoder.train_text_encoder", False, "train_text_encoder"),
    ("text_encoder.pretrained", "google/flan-t5-small", "pretrained"),
    ("scheduler", {"prediction_type": "flow"}, "`prediction_type` is 'flow'"),
    ("scheduler", {"prediction_type": 3}, "scheduler.prediction_type"),
    ("scheduler", {"prediction_type": ["sample", 3]}, "scheduler.prediction_type[1]"),
    ("scheduler", {"prediction_type": ["sample"]}, "scheduler.prediction_type"),
    ("scheduler", {"prediction_type": ["residual", "sample"]}, "level 0 has no level inside it"),
    ("scheduler", {"sigma_data": [0.2, 0.3]}, "scheduler.sigma_data"),
    ("scheduler", {"sigma_data": -1}, "sigma_data"),
    ("scheduler", {"base_sample_size": 64}, "scheduler.base_sample_size"),
    ("mixed_precision", "fp8", "mixed_precision"),
    ("model.sample_size", "8", "model.sample_size"),
    ("model.sample_size", 10**9, "model.sample_size"),
    ("model.sample_size", 9, "model.sample_size"),
    ("model.num_attention_heads", 0, "model.num_attention_heads"),
    ("model.norm_eps", float("nan"), "model.norm_eps"),
    ("levels.0.norm_num_groups", 3, "`levels[0].norm_num_groups`"),
    ("levels.0.layers_per_block", [10**9, 1], "levels[0].layers_per_block"),
    ("levels.1.dropout", float("inf"), "levels[1].dropout"),
    ("levels.1.block_out_channels", [8], "`levels[1].layers_per_block`"),
    ("scheduler", {"shift_power": "2"}, "scheduler.shift_power"),
    ("scheduler", {"num_train_timesteps": 10**9}, "scheduler.num_train_timesteps"),
    ("scheduler", {"beta_schedule": "square"}, "beta_schedule"),
    ("scheduler", {"num_train_timesteps": 1}, "validation.num_inference_steps"),
    ("validation.num_inference_steps", 1001, "validation.num_inference_steps"),
    ("validation.num_inference_steps", 0, "num_inference_steps"),
    ("validation.num_validation_images", -1, "num_validation_images"),
    ("stages.0.learning_rate", -0.1, "learning_rate"),
    ("stages.1.level_weights", [0.0, 0.0], "level_weights"),
    ("optimizer", {"adam_beta1": 1.0}, "adam_beta1"),
    ("optimizer", {"name": "prodigy"}, "stages[0].learning_rate"),
    ("optimizer", {"name": "sgd"}, "optimizer.name"),
]


@pytest.mark.parametrize(("path", "value", "named"), MISTAKES, ids=lambda part: str(part)[:40])
def test_mistakes_name_file_and_field(tmp_path, path, value, named):
    recipe = edited("name", "edited")
    recipe = edited(path, value) if path not in ("scheduler", "optimizer") else {**recipe, path: value}
    file = written(tmp_path, recipe)
    with pytest.raises(ValueError, match=r"edited\.yaml") as caught:
        load_recipe(file)
    assert named in str(caught.value)


def test_a_file_that_is_not_yaml_is_refused(tmp_path):
    path = tmp_path / "broken.yaml"
    path.write_text("name: [")
    with pytest.raises(ValueError, match=r"broken\.yaml"):
        load_recipe(path)


@pytest.mark.parametrize(
    ("line", "on_cpu", "on_gpu"),
    [("", True, False), ("channels_last: true", True, True), ("channels_last: false", False, False)],
)
def test_images_are_in_channels_last_on_cpus_or_as_the_recipe_says(tmp_path, line, on_cpu, on_gpu):
    path = written(tmp_path, edited("name", "edited"))
    path.write_text(f"{path.read_text()}\n{line}\n")
    recipe = load_recipe(path)
    formats = [memory_format_on(device, recipe.channels_last) for device in ("cpu", "cuda")]
    assert [found is torch.channels_last for found in formats] == [on_cpu, on_gpu]


PRODIGY = {
    "optimizer": {"name": "prodigy"},
    "stages": [{"name": "one", "levels": 1, "steps": 1, "batch_size": 1, "learning_rate": 1.0}],
}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"stages": [{**PRODIGY["stages"][0], "level_learning_rate_scales": [0.5]}]}, "level_learning_rate_scales"),
        ({"token_learning_rate_scale": 2.0}, "text_encoder.token_learning_rate_scale"),
        ({"learning_rate_scale": 0.5}, "text_encoder.learning_rate_scale"),
        ({"optimizer": {"use_8bit_adam": True}, "channels_last": True}, "channels_last"),
    ],
)
def test_what_an_optimizer_cannot_do_is_refused(tmp_path, changes, named):
    recipe = {**edited("name", "edited"), **PRODIGY}
    recipe["text_encoder"]["token_learning_rate_scale"] = 1.0
    assert load_recipe(written(tmp_path, recipe)).optimizer.name == "prodigy"
    part = recipe["text_encoder"] if "scale" in next(iter(changes)) else recipe
    part.update(changes)
    with pytest.raises(ValueError, match=f"`{named}`"):
        load_recipe(written(tmp_path, recipe))
