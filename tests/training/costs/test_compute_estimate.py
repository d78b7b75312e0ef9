# SPDX-License-Identifier: Apache-2.0
"""Operations without weights are those of the real model, and hours follow from them."""

import dataclasses

import pytest
import torch
import yaml
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from diffusers_mdm.cli.training import estimate
from diffusers_mdm.models.nested_unet import NestedUNetModel
from diffusers_mdm.training.commands.dry_run import describe_run
from diffusers_mdm.training.costs.compute_estimate import Gpu, describe_compute, estimate_compute, pass_flops
from diffusers_mdm.training.loop.start import build_unet
from diffusers_mdm.training.recipe.loading import load_recipe
from diffusers_mdm.training.recipe.stage import PlateauRecipe
from tests.training.costs.partly_trained import freeze_inside_new_level, freeze_inside_trained_level, lora_recipe
from tests.training.tiny_run import RECIPES

ACCELERATE = RECIPES.parent / "accelerate"
TINY = load_recipe(RECIPES / "tiny.yaml")


def operations(unet: NestedUNetModel) -> int:
    """Count the operations of a forward and a backward pass with the batch of the outer stage."""
    inputs = {
        "sample": [torch.randn(4, 3, 8, 8), torch.randn(2, 3, 16, 16)],
        "timestep": torch.zeros(4, dtype=torch.int64),
        "encoder_hidden_states": torch.randn(4, TINY.max_sequence_length, 16),
        "encoder_attention_mask": torch.ones(4, TINY.max_sequence_length, dtype=torch.bool),
    }
    counter = FlopCounterMode(display=False)
    with sdpa_kernel(SDPBackend.MATH), counter:
        torch.stack([level.mean() for level in unet(**inputs).sample]).sum().backward()
    return counter.get_total_flops()


def test_operations_are_those_of_a_model_with_weights():
    assert pass_flops(TINY, TINY.stages[1]) == operations(build_unet(TINY, 2).train())


def test_what_does_not_learn_costs_less():
    """Weights of frozen levels need no gradients, nor do their inputs unless something outside them learns by them."""
    stage = dataclasses.replace(TINY.stages[1], frozen_levels=1)
    unet = build_unet(TINY, 2).train()
    whole = operations(unet)
    freeze_inside_new_level(unet)
    closed = operations(unet)
    freeze_inside_trained_level(unet)
    opened = operations(unet)
    assert pass_flops(TINY, stage) == closed
    assert pass_flops(dataclasses.replace(TINY, stages=(stage,)), stage) == opened
    assert closed < opened < whole
    adapted = lora_recipe(TINY)
    assert pass_flops(adapted, adapted.stages[0]) < 0.8 * whole


def test_stages_add_up_over_processes():
    inner, outer = estimate_compute(TINY, 2)
    assert (inner.images, outer.images) == (4 * 4 * 2, 4 * 8 * 2)
    assert outer.flops_per_image > inner.flops_per_image
    assert outer.flops == outer.images * outer.flops_per_image


def test_hours_follow_from_rate_and_utilisation(capsys):
    assert Gpu(1000.0, 0.5).hours(3600 * 500e12) == pytest.approx(1.0)
    text = describe_compute(TINY, Gpu(1e-3, 0.5), 2)
    assert "tiny, 2 GPU(s) of 0.001 TFLOP/s, of which 0.5 is used" in text
    assert text.count("GPU hours") == 3
    assert estimate.run("estimate", ["--recipe", str(RECIPES / "tiny.yaml"), "--tflops", "0.5"]) == 0
    assert "tiny, 1 GPU(s) of 0.5 TFLOP/s, of which 0.1 is used" in capsys.readouterr().out
    for rate, share in ((0.0, 0.5), (100.0, 0.0), (100.0, 1.5)):
        with pytest.raises(ValueError, match="expected"):
            Gpu(rate, share)


def test_a_stage_that_a_plateau_ends_has_no_known_length():
    plateau = PlateauRecipe(every_steps=2)
    data = dataclasses.replace(TINY.data, validation_split="validation")
    first = dataclasses.replace(TINY.stages[0], steps=None, until_plateau=plateau, lr_scheduler="constant")
    recipe = dataclasses.replace(TINY, data=data, stages=(first, TINY.stages[1]))
    assert "its length is not known" in describe_compute(recipe, Gpu(1.0, 1.0))


@pytest.mark.slow
def test_clips_count_their_joint_images():
    recipe = load_recipe(RECIPES / "tiny_video.yaml")
    stages = estimate_compute(recipe)
    assert all(stage.flops_per_image > 0 for stage in stages)
    joint = next(stage for stage in recipe.stages if stage.joint_images)
    alone = dataclasses.replace(recipe, stages=tuple(dataclasses.replace(s, joint_images=0) for s in recipe.stages))
    index = recipe.stages.index(joint)
    assert estimate_compute(alone)[index].flops_per_image < stages[index].flops_per_image


FULL_SCALE = ("imagenet_64", "imagenet_256", "cc12m_64", "cc12m_256", "cc12m_1024", "video_256")


@pytest.mark.slow
@pytest.mark.parametrize("config", ["ddp", "ddp_64"])
@pytest.mark.parametrize("name", FULL_SCALE)
def test_full_scale_is_planned_without_its_memory(name, config):
    """Weights and activations of these models would not fit; nothing is downloaded."""
    launch = yaml.safe_load((ACCELERATE / f"{config}.yaml").read_text(encoding="utf-8"))
    assert launch["num_processes"] == 8 * launch["num_machines"]
    recipe = load_recipe(RECIPES / f"{name}.yaml")
    text = describe_run(recipe, num_processes=launch["num_processes"])
    costs = [line for line in text.splitlines() if line.startswith("    compute: ")]
    assert len(costs) == len(recipe.stages)
    assert all(line.endswith(" days") for line in costs)
    assert f"= {launch['num_processes']} process(es) x" in text
