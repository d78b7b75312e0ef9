# SPDX-License-Identifier: Apache-2.0
"""The optimizer's groups: every trained parameter once, the token table at its own pace."""

import dataclasses

import pytest
from test_stage import batch_of, new_run

from diffusers_mdm.training.engine import build_unet
from diffusers_mdm.training.recipe import TextEncoderRecipe
from diffusers_mdm.training.stage import begin_stage, compute_loss, parameter_groups, update_weights


def test_every_trained_parameter_is_in_one_group(pictures_dir, tmp_path):
    run, _ = new_run(pictures_dir, tmp_path)
    grouped = [parameter for group in parameter_groups(run) for parameter in group["params"]]
    trained = [parameter for module in run.trained_modules.values() for parameter in module.parameters()]
    assert len(grouped) == len({id(parameter) for parameter in grouped})
    assert {id(parameter) for parameter in grouped} == {id(parameter) for parameter in trained}


def test_token_table_learns_at_its_own_rate(pictures_dir, tmp_path):
    run, images = new_run(pictures_dir, tmp_path, {"lr_scheduler": "constant", "lr_warmup_steps": 0})
    text_encoder = dataclasses.replace(run.recipe.text_encoder, token_learning_rate_scale=20.0)
    run.recipe = dataclasses.replace(run.recipe, text_encoder=text_encoder, zero_init=False)
    run.unet = build_unet(run.recipe, 1)  # silent branches would pass no gradient on to the text
    stage = run.recipe.stages[0]
    begin_stage(run, stage)
    tokens = run.text_encoder.get_input_embeddings().weight
    before = tokens.detach().clone()
    compute_loss(run, stage, run.unet, run.pipeline(), batch_of(images, range(4))).total.backward()
    update_weights(run, stage)
    rates = {group["name"]: group["lr"] for group in run.optimizer.param_groups}
    assert rates.pop("text_encoder.tokens") == pytest.approx(20 * stage.learning_rate)
    assert set(rates.values()) == {stage.learning_rate}
    # Adam's first step moves every weight that has a gradient by the learning rate.
    assert (tokens - before).detach().abs().max().item() == pytest.approx(20 * stage.learning_rate, rel=1e-2)


@pytest.mark.parametrize("field", ["token_learning_rate_scale", "initializer_factor"])
def test_scales_are_positive(field):
    with pytest.raises(ValueError, match=field):
        TextEncoderRecipe(pretrained="encoder", **{field: 0.0})


def test_zero_init_is_a_choice(pictures_dir, tmp_path):
    recipe = new_run(pictures_dir, tmp_path)[0].recipe
    for zero_init in (True, False):
        unet = build_unet(dataclasses.replace(recipe, zero_init=zero_init), 1)
        assert bool(unet.levels[0].decoder.conv_out.weight.any()) != zero_init
