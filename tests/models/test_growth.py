# SPDX-License-Identifier: Apache-2.0
"""A model grows from the inside out without forgetting anything, and opens again from the outside in."""

import pytest
import torch
from diffusers.training_utils import EMAModel

from diffusers_mdm import LevelConfig, NestedUNetModel

SAME = {"rtol": 0, "atol": 0}
OUTER_ROW = LevelConfig((8, 16), (1, 1), (0, 0), norm_num_groups=4, micro_conditioning_defaults=(32.0,))


@torch.no_grad()
def test_inner_predictions_of_a_grown_model_are_bit_identical(model, inputs):
    grown = model.add_level(OUTER_ROW)
    assert grown.sample_sizes == (8, 16, 32)
    before = model(**inputs).sample
    outer = {**inputs, "sample": [*inputs["sample"], torch.randn(1, 3, 32, 32)]}
    after = grown(**outer).sample
    torch.testing.assert_close(after[:2], before, **SAME)
    assert torch.equal(after[2], torch.zeros(1, 3, 32, 32))
    torch.testing.assert_close(grown(**inputs).sample, before, **SAME)


def test_old_parameters_are_a_prefix_in_name_and_order(model):
    grown = model.add_level(OUTER_ROW)
    old, new = dict(model.named_parameters()), dict(grown.named_parameters())
    assert list(new)[: len(old)] == list(old)
    assert all(name.startswith("levels.2.") for name in list(new)[len(old) :])
    assert all(torch.equal(new[name], parameter) for name, parameter in old.items())
    assert not any(new[name] is parameter for name, parameter in old.items())


def test_growing_twice_equals_building_at_once(config):
    rows = LevelConfig.levels_from({**NestedUNetModel(**config).config})
    inner_columns = LevelConfig.columns_from(rows[:1])
    grown = NestedUNetModel(**{**config, **inner_columns}).add_level(rows[1]).add_level(OUTER_ROW)
    at_once = NestedUNetModel(**{**config, **LevelConfig.columns_from((*rows, OUTER_ROW))})
    shapes = {name: tensor.shape for name, tensor in at_once.state_dict().items()}
    assert {name: tensor.shape for name, tensor in grown.state_dict().items()} == shapes
    assert list(grown.state_dict()) == list(at_once.state_dict())


def test_ema_and_optimizer_state_line_up_after_growth(model, inputs):
    optimizer = torch.optim.AdamW(model.parameters())
    sum(level.sum() for level in model(**inputs).sample).backward()
    optimizer.step()
    average = EMAModel(model.parameters())
    grown = model.add_level(OUTER_ROW)
    shapes = [parameter.shape for parameter in grown.parameters()]
    assert [shadow.shape for shadow in average.shadow_params] == shapes[: len(average.shadow_params)]
    state = optimizer.state_dict()["state"]
    assert [state[index]["exp_avg"].shape for index in sorted(state)] == shapes[: len(state)]


@torch.no_grad()
def test_checkpoint_of_k_levels_loads_into_k_plus_one(model, inputs, tmp_path):
    model.save_pretrained(tmp_path)
    grown = NestedUNetModel.from_pretrained(tmp_path).add_level(OUTER_ROW).eval()
    torch.testing.assert_close(grown(**inputs).sample, model(**inputs).sample, **SAME)


def test_growth_keeps_dtype_and_mode(model):
    grown = model.to(torch.bfloat16).train().add_level(OUTER_ROW)
    assert grown.dtype == torch.bfloat16
    assert grown.training


def test_a_fused_model_does_not_grow(model):
    model.fuse_qkv_projections()
    with pytest.raises(ValueError, match="parameters are those of its config"):
        model.add_level(OUTER_ROW)


@pytest.mark.parametrize("levels", [0, 3])
def test_inner_model_needs_levels_that_exist(model, levels):
    with pytest.raises(ValueError, match="2"):
        model.inner_model(levels)


@torch.no_grad()
def test_training_starts_from_zero_output(config, inputs):
    model = NestedUNetModel(**config)
    model.zero_init_()
    assert all(torch.equal(level, torch.zeros_like(level)) for level in model(**inputs).sample)


def test_a_model_of_default_settings_grows():
    """Columns that were left out when the model was built are not left out of the one it grows into."""
    model = NestedUNetModel(block_out_channels=((32,),), layers_per_block=((1,),), attention_layers_per_block=((0,),))
    row = LevelConfig((32, 32), (1, 1), (0, 0), normalize_input=True, dropout=0.1)
    grown = model.add_level(row)
    assert grown.level_configs == (*model.level_configs, row)
    assert grown.inner_model(1).level_configs == model.level_configs
