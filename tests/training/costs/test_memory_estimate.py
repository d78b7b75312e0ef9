# SPDX-License-Identifier: Apache-2.0
"""The estimate against what real tensors take on a tiny model."""

import contextlib
import dataclasses
from pathlib import Path

import pytest
import torch

from diffusers_mdm.models.level_config import LevelConfig
from diffusers_mdm.models.nested_unet import NestedUNetModel
from diffusers_mdm.training.costs.memory_estimate import estimate_stage, has_new_adapter, stage_activations
from diffusers_mdm.training.modules.lora import add_lora
from diffusers_mdm.training.recipe.loading import load_recipe
from diffusers_mdm.training.recipe.recipe import Recipe
from diffusers_mdm.training.state.run import RunOptions
from tests.training.costs.partly_trained import freeze_inside_new_level, freeze_inside_trained_level, lora_recipe
from tests.training.tiny_run import RECIPES

OPTIONS = RunOptions(output_dir=Path("out"))


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return load_recipe(RECIPES / "tiny.yaml")


def real_unet(recipe: Recipe, levels: int) -> NestedUNetModel:
    return NestedUNetModel(**recipe.model, **LevelConfig.columns_from(recipe.level_configs[:levels])).train()


def saved_bytes(unet: NestedUNetModel, recipe: Recipe, rows: tuple[int, ...], autocast: bool = False) -> int:
    """Bytes of real memory that one forward pass keeps for the backward pass, weights left out."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in unet.parameters()}
    pieces: dict[int, torch.Tensor] = {}  # tensors are held, so that no address is used twice

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        address = tensor.untyped_storage().data_ptr()
        if address not in weights:
            pieces[address] = tensor
        return tensor

    sides = (8, 16)[: len(rows)]
    sample = [torch.randn(count, 3, side, side) for count, side in zip(rows, sides, strict=True)]
    length = recipe.max_sequence_length
    half = torch.autocast("cpu", torch.bfloat16) if autocast else contextlib.nullcontext()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), half:
        unet(
            sample,
            torch.zeros(rows[0], dtype=torch.int64),
            encoder_hidden_states=torch.randn(rows[0], length, 16),
            encoder_attention_mask=torch.ones(rows[0], length, dtype=torch.bool),
        )
    return sum(tensor.untyped_storage().nbytes() for tensor in pieces.values())


@pytest.mark.parametrize("number", [0, 1])
def test_activations_are_those_of_a_real_forward_pass(recipe, number):
    stage = recipe.stages[number]
    estimated = estimate_stage(recipe, stage, OPTIONS, 0).activations
    real = saved_bytes(real_unet(recipe, stage.levels), recipe, stage.samples_per_level)
    assert estimated == pytest.approx(real, rel=0.02)


def test_activations_around_frozen_levels_are_kept_where_gradients_run(recipe):
    stage = dataclasses.replace(recipe.stages[1], frozen_levels=1)
    unet = real_unet(recipe, 2)
    freeze_inside_new_level(unet)
    real = saved_bytes(unet, recipe, stage.samples_per_level)
    assert estimate_stage(recipe, stage, OPTIONS, 0).activations == pytest.approx(real, rel=0.02)
    # After a stage that has trained the adapter, gradients run through the frozen levels to what is around them.
    freeze_inside_trained_level(unet)
    later = dataclasses.replace(stage, name="later")
    longer = dataclasses.replace(recipe, stages=(*recipe.stages, later))
    open_real = saved_bytes(unet, recipe, stage.samples_per_level)
    assert estimate_stage(longer, later, OPTIONS, 0).activations == pytest.approx(open_real, rel=0.02)
    # A model that begins with both levels has an adapter that need not be zero.
    first = dataclasses.replace(recipe, stages=(stage,))
    assert not has_new_adapter(first, stage)
    assert real < 0.8 * open_real


def test_activations_in_half_precision(recipe):
    stage = recipe.stages[1]
    half = dataclasses.replace(OPTIONS, mixed_precision="bf16")
    estimated = estimate_stage(recipe, stage, half, 0).activations
    real = saved_bytes(real_unet(recipe, 2), recipe, stage.samples_per_level, autocast=True)
    assert estimated == pytest.approx(real, rel=0.02)
    assert estimated < saved_bytes(real_unet(recipe, 2), recipe, stage.samples_per_level)


def test_adapters_keep_their_own_activations(recipe):
    adapted = lora_recipe(recipe)
    stage = adapted.stages[0]
    unet = real_unet(adapted, 2)
    add_lora(unet, adapted.lora)
    real = saved_bytes(unet, adapted, stage.samples_per_level)
    assert estimate_stage(adapted, stage, OPTIONS, 0).activations == pytest.approx(real, rel=0.02)


def test_activations_grow_with_the_batch_and_shrink_with_checkpointing(recipe):
    stage = recipe.stages[0]
    one, two = (
        estimate_stage(recipe, dataclasses.replace(stage, batch_size=size), OPTIONS, 0).activations for size in (4, 8)
    )
    assert two == pytest.approx(2 * one, rel=0.02)
    checkpointed = dataclasses.replace(OPTIONS, gradient_checkpointing=True)
    assert 0 < estimate_stage(recipe, stage, checkpointed, 0).activations < 0.7 * one


def test_each_level_saves_its_own_activations(recipe):
    stage = dataclasses.replace(recipe.stages[1], batch_size=16, batch_fractions=None)
    (passed,) = stage_activations(recipe, stage, OPTIONS)
    saved = {levels: passed.num_bytes() - passed.num_bytes(levels) for levels in ((0,), (1,), (0, 1))}
    assert min(saved.values()) > 0
    # Less than the sum: only one layer is rerun at a time, and the levels share inputs.
    assert max(saved[(0,)], saved[(1,)]) < saved[(0, 1)]
    for levels in ((1,), (0, 1)):
        options = dataclasses.replace(OPTIONS, gradient_checkpointing_levels=levels)
        assert estimate_stage(recipe, stage, options, 0, passes=[passed]).activations == passed.num_bytes(levels)


def test_weights_gradients_and_moments_are_those_of_a_real_step(recipe, no_forward):
    unet = real_unet(recipe, 2)
    optimizer = torch.optim.AdamW(unet.parameters())
    for parameter in unet.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    memory = estimate_stage(recipe, recipe.stages[1], OPTIONS, 0)
    weights = sum(parameter.numel() * parameter.element_size() for parameter in unet.parameters())
    moments = sum(
        value.nbytes for state in optimizer.state.values() for name, value in state.items() if name != "step"
    )
    assert (memory.weights, memory.gradients, memory.averages) == (weights, weights, weights)
    assert memory.moments == moments
    assert memory.total == 3 * weights + moments


def test_what_does_not_learn_has_weights_alone(recipe, no_forward):
    whole = estimate_stage(recipe, recipe.stages[1], OPTIONS, 0)
    frozen = estimate_stage(recipe, dataclasses.replace(recipe.stages[1], frozen_levels=1), OPTIONS, 0)
    outer = sum(
        value.numel()
        for name, value in real_unet(recipe, 2).named_parameters()
        if name.startswith("levels.1.") and not name.startswith("levels.1.encoder.in_adapter.")
    )
    assert frozen.weights == whole.weights
    assert (frozen.gradients, frozen.moments) == (4 * outer, 8 * outer)
    adapted = lora_recipe(recipe)
    unet = real_unet(adapted, 2)
    plain = sum(parameter.numel() for parameter in unet.parameters())
    add_lora(unet, adapted.lora)
    adapters = sum(parameter.numel() for parameter in unet.parameters() if parameter.requires_grad)
    half = dataclasses.replace(OPTIONS, mixed_precision="bf16")
    memory = estimate_stage(adapted, adapted.stages[0], half, 0)
    assert (memory.gradients, memory.moments, memory.averages) == (4 * adapters, 8 * adapters, 4 * adapters)
    assert memory.weights == 4 * adapters + 2 * plain


def test_averages_elsewhere_or_none_take_nothing(recipe, no_forward):
    offloaded = dataclasses.replace(OPTIONS, offload_ema=True)
    assert estimate_stage(recipe, recipe.stages[0], offloaded, 0).averages == 0
    without = dataclasses.replace(recipe, use_ema=False)
    assert estimate_stage(without, without.stages[0], OPTIONS, 0).averages == 0


def test_the_text_encoder_is_counted_where_it_is_in_memory(recipe, no_forward):
    trained = estimate_stage(recipe, recipe.stages[0], OPTIONS, 1000)
    assert trained.text_encoder == 1000 * (4 + 4 + 8 + 4)
    frozen = lora_recipe(recipe)
    assert estimate_stage(frozen, frozen.stages[0], OPTIONS, 1000).text_encoder == 4000
    half = dataclasses.replace(OPTIONS, mixed_precision="fp16")
    assert estimate_stage(frozen, frozen.stages[0], half, 1000).text_encoder == 2000
    assert estimate_stage(frozen, frozen.stages[0], OPTIONS, None).text_encoder is None
    offloaded = dataclasses.replace(OPTIONS, offload=True)
    assert estimate_stage(frozen, frozen.stages[0], offloaded, 1000).text_encoder == 0
    assert estimate_stage(recipe, recipe.stages[0], offloaded, 1000).text_encoder == trained.text_encoder
