# SPDX-License-Identifier: Apache-2.0
r"""Train the tiny recipe as one of several processes and write what this one ended with: see test_processes.py.

python train_in_processes.py PICTURES OUTPUT '{"stage": {"batch_size": 4}, "outer": {"share_blocks": true},
    "recipe": {"optimizer": {"max_grad_norm": 0.1}}, "options": {"checkpointing_steps": 2}, "as_gpus": true}'

Every process writes what it saw of the weights at each step to OUTPUT/steps-<process>.jsonl.
"""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from diffusers_mdm.training.extra_losses.frozen_networks import NETWORKS
from diffusers_mdm.training.loop import stage as stage_module
from diffusers_mdm.training.loop.engine import run_recipe
from diffusers_mdm.training.loop.interruption import RunInterrupted
from diffusers_mdm.training.recipe.optimizer import PostHocEmaRecipe
from diffusers_mdm.training.recipe.recipe import LoraRecipe, OptimizerRecipe, PretrainedRecipe, Recipe
from diffusers_mdm.training.recipe.stage import AlignmentRecipe, PerceptualRecipe, PlateauRecipe
from diffusers_mdm.training.recipe.text_encoder import TextEncoderRecipe
from diffusers_mdm.training.state.run import Run, RunOptions
from tests.training.extra_losses.tiny_networks import TinyMaps
from tests.training.tiny_run import tiny_recipe

# Sections that the tiny recipe lacks, or that are given whole.
SECTIONS = {"lora": LoraRecipe, "pretrained": PretrainedRecipe, "text_encoder": TextEncoderRecipe}
SECTIONS |= {"post_hoc_ema": PostHocEmaRecipe, "alignment": AlignmentRecipe, "perceptual": PerceptualRecipe}


def smooth_recipe(images_dir: Path, **stage_fields: object) -> Recipe:
    """The tiny recipe without what would magnify rounding: pads that count, and Adam's division by tiny numbers."""
    recipe = tiny_recipe(images_dir, **stage_fields)
    model = {**recipe.model, "use_cross_attention_mask": True}
    return dataclasses.replace(recipe, model=model, optimizer=OptimizerRecipe(adam_epsilon=1e-2), zero_init=False)


def with_fields(recipe: Recipe, fields: dict[str, Any]) -> Recipe:
    """The recipe with other fields, those of a section given as a mapping."""
    changed = {}
    for name, value in fields.items():
        section = getattr(recipe, name)
        if name in SECTIONS and value is not None:
            value = SECTIONS[name](**value)
        elif value is not None and dataclasses.is_dataclass(section):
            value = dataclasses.replace(section, **value)
        changed[name] = value
    return dataclasses.replace(recipe, **changed)


def in_last_stage(recipe: Recipe, fields: dict[str, Any]) -> Recipe:
    """The recipe with other fields of its last stage."""
    *before, last = recipe.stages
    if "until_plateau" in fields:
        fields = {**fields, "until_plateau": PlateauRecipe(**fields["until_plateau"])}
    return dataclasses.replace(recipe, stages=(*before, dataclasses.replace(last, **fields)))


def let_accelerate_take_processes_for_gpus() -> None:
    """accelerate shards on GPUs alone; let it do so on CPU processes, for which torch shards just as well."""
    state = PartialState(cpu=True)
    if state.distributed_type != DistributedType.MULTI_CPU:
        raise RuntimeError(f"Expected several processes on CPU cores, found {state.distributed_type}.")
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU


def watch_steps(output_dir: Path) -> None:
    """Write a line after every step: how the weights lay in memory, and the gradient's norm before clipping."""
    clip, step, norms = Accelerator.clip_grad_norm_, stage_module.optimizer_step, []

    def clip_and_keep(self: Accelerator, *args: Any, **fields: Any) -> Any:
        norm = clip(self, *args, **fields)
        norms.append((norm.full_tensor() if isinstance(norm, DTensor) else norm).item())
        return norm

    def step_and_tell(run: Run, *args: Any) -> torch.Tensor:
        parameters = list(run.model.parameters())
        shards = [value.to_local() if isinstance(value, DTensor) else value for value in parameters]
        table = step(run, *args)
        line = {
            "kind": run.accelerator.distributed_type.value,
            "here": sum(shard.numel() for shard in shards),
            "whole": sum(value.numel() for value in parameters),
            "units": sum(isinstance(module, FSDPModule) for module in run.model.modules()),
            "norm": norms[-1],
        }
        output_dir.mkdir(parents=True, exist_ok=True)
        with (output_dir / f"steps-{run.accelerator.process_index}.jsonl").open("a") as lines:
            lines.write(json.dumps(line) + "\n")
        return table

    Accelerator.clip_grad_norm_, stage_module.optimizer_step = clip_and_keep, step_and_tell


def main(images_dir: Path, output_dir: Path, fields: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    NETWORKS["tiny"] = TinyMaps
    if fields.get("as_gpus"):
        let_accelerate_take_processes_for_gpus()
    watch_steps(output_dir)
    recipe = with_fields(smooth_recipe(images_dir, **fields.get("stage", {})), fields.get("recipe", {}))
    recipe = in_last_stage(recipe, fields.get("last_stage", {}))
    inner, outer = recipe.levels
    recipe = dataclasses.replace(recipe, levels=(inner, {**outer, **fields.get("outer", {})}))
    try:
        run_recipe(recipe, RunOptions(output_dir=output_dir, report_to=None, **fields.get("options", {})))
    except RunInterrupted as stopped:
        print(stopped)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3]))
