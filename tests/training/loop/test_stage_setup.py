# SPDX-License-Identifier: Apache-2.0
import dataclasses

import pytest
import torch

from diffusers_mdm.training.loop.stage_setup import begin_stage, checkpointed_modules
from diffusers_mdm.training.loop.start import start_run
from diffusers_mdm.training.state.run import RunOptions
from tests.training.tiny_run import tiny_recipe


def lay_out_as_in_a_file(module: torch.nn.Module) -> None:
    """Move weights to addresses that are no multiple of 16, as loaded ones may lie in the file."""
    for tensor in module.parameters():
        bytes_of = torch.empty(tensor.numel() * 4 + 128, dtype=torch.uint8)
        begin = -bytes_of.data_ptr() % 64 + 4
        moved = bytes_of[begin : begin + tensor.numel() * 4].view(torch.float32).view(tensor.shape)
        tensor.data = moved.copy_(tensor.data)


def test_weights_lie_alike_in_memory_wherever_they_were_loaded_to(images_dir, tmp_path):
    """Libraries add up in another order from other addresses, so that a resumed run would differ in last digits."""
    run = start_run(tiny_recipe(images_dir), RunOptions(output_dir=tmp_path, report_to=None))
    before = {name: value.clone() for name, value in run.unet.state_dict().items()}
    for module in (run.unet, run.text_encoder):
        lay_out_as_in_a_file(module)
    begin_stage(run, run.recipe.stages[0])
    for module in (run.unet, run.text_encoder):
        assert [name for name, value in module.state_dict().items() if value.data_ptr() % 64] == []
    assert all(torch.equal(value, before[name]) for name, value in run.unet.state_dict().items())


def test_chosen_levels_recompute_their_activations(images_dir, tmp_path):
    options = RunOptions(output_dir=tmp_path, report_to=None, gradient_checkpointing_levels=(1,))
    run = start_run(tiny_recipe(images_dir), options)
    for stage, expected in zip(run.recipe.stages, ([False], [False, True]), strict=True):
        begin_stage(run, stage)
        found = [
            {module.gradient_checkpointing for module in checkpointed_modules(level)} for level in run.unet.levels
        ]
        assert found == [{checkpointed} for checkpointed in expected]


@pytest.mark.parametrize("channels_last", [None, True, False])
def test_weights_are_in_the_memory_format_of_the_recipe(images_dir, tmp_path, channels_last):
    recipe = dataclasses.replace(tiny_recipe(images_dir), channels_last=channels_last)
    run = start_run(recipe, RunOptions(output_dir=tmp_path, report_to=None))
    begin_stage(run, recipe.stages[0])
    expected = torch.contiguous_format if channels_last is False else torch.channels_last  # None: as on any CPU
    assert run.memory_format is expected
    kernels = [parameter for parameter in run.unet.parameters() if parameter.ndim == 4]
    assert all(kernel.is_contiguous(memory_format=expected) for kernel in kernels)
