# SPDX-License-Identifier: Apache-2.0
"""Whatever a recipe says of its model and scheduler is bounded before anything is made of it."""

import dataclasses

import pytest
import torch

from diffusers_mdm import LevelConfig
from diffusers_mdm.training.recipe.loading import load_recipe
from diffusers_mdm.training.recipe.model_checks import (
    MAX_LEVELS,
    MAX_RESOLUTIONS,
    check_can_be_made,
    check_levels,
    read_model_arguments,
    read_scheduler_arguments,
    spell_level_fields,
)
from tests.training.tiny_run import RECIPES

ROW = LevelConfig((8, 8), (1, 1), (0, 0), norm_num_groups=4)


@pytest.fixture(scope="module")
def tiny():
    return load_recipe(RECIPES / "tiny.yaml")


def test_good_arguments_come_back_with_their_types():
    assert read_model_arguments({"sample_size": 8, "norm_eps": 1}) == {"sample_size": 8, "norm_eps": 1.0}
    assert read_scheduler_arguments({"trained_betas": [0.1, 0.2]})["trained_betas"] == [0.1, 0.2]


@pytest.mark.parametrize(
    ("read", "values", "field"),
    [
        (read_model_arguments, {"in_channels": 0}, "model.in_channels"),
        (read_model_arguments, {"num_class_embeds": 1}, "model.num_class_embeds"),
        (read_model_arguments, {"num_text_layers": 10**9}, "model.num_text_layers"),
        (read_model_arguments, {"block_out_channels": [8]}, "block_out_channels"),  # it belongs to a level
        (read_scheduler_arguments, {"shift_power": -1.0}, "scheduler.shift_power"),
        (read_scheduler_arguments, {"trained_betas": []}, "scheduler.trained_betas"),
        (read_scheduler_arguments, {"num_train_timesteps": "many"}, "scheduler.num_train_timesteps"),
    ],
)
def test_others_are_refused_by_their_place_in_the_recipe(read, values, field):
    with pytest.raises(ValueError, match=field.replace(".", r"\.")):
        read(values)


@pytest.mark.parametrize(
    ("rows", "field"),
    [
        ([ROW] * (MAX_LEVELS + 1), "levels"),
        ([ROW, dataclasses.replace(ROW, block_out_channels=(8,) * (MAX_RESOLUTIONS + 1))], r"levels\[1\]"),
        ([ROW, dataclasses.replace(ROW, layers_per_block=(10**9, 1))], r"levels\[1\]\.layers_per_block"),
        ([LevelConfig((8,) * 8, (1,) * 8, (0,) * 8, norm_num_groups=4)] * 4, "levels.* pixels or latents"),
        ([ROW, dataclasses.replace(ROW, normalize_input=True, num_frames=2)], r"levels\[1\]\.num_frames"),
    ],
)
def test_levels_are_bounded_and_fit_each_other(rows, field):
    with pytest.raises(ValueError, match=field):
        check_levels(rows, 64)
    check_levels([ROW, ROW], 64)


def test_columns_of_a_config_are_spelt_as_fields_of_levels():
    assert (
        spell_level_fields("num_frames[1] = 4, not `dropout[0]`")
        == "`levels[1].num_frames` = 4, not `levels[0].dropout`"
    )
    assert spell_level_fields("num_frames is 4") == "num_frames is 4"


def test_a_model_is_made_without_taking_memory_or_random_numbers(tiny):
    state = torch.get_rng_state()
    wide = {**tiny.model, "num_class_embeds": 2**23, "time_embed_dim": 2**15}  # 1 TiB of class embeddings
    check_can_be_made(wide, tiny.level_configs, tiny.scheduler)
    assert torch.equal(torch.get_rng_state(), state)


def test_what_contradicts_itself_cannot_be_made(tiny):
    with pytest.raises(ValueError, match=r"`model` and `levels`: .*num_attention_heads"):
        check_can_be_made({**tiny.model, "num_attention_heads": 3}, tiny.level_configs, {})
    with pytest.raises(ValueError, match=r"model\.sample_size`? is 7, .* multiple of 2"):
        check_can_be_made({**tiny.model, "sample_size": 7}, tiny.level_configs, {})
    with pytest.raises(ValueError, match=r"`scheduler`: .*log_snr_max"):
        check_can_be_made(tiny.model, tiny.level_configs, {"log_snr_max": float("nan")})
    for schedule in ({"beta_schedule": "rectified_flow"}, {"rescale_betas_zero_snr": True}):
        with pytest.raises(ValueError, match=r"scheduler\.prediction_type.*pure noise"):
            check_can_be_made(tiny.model, tiny.level_configs, {**schedule, "prediction_type": "epsilon"})
