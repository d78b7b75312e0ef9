# SPDX-License-Identifier: Apache-2.0
"""Measure what gradient checkpointing saves and costs, for each level alone and for all of them.

Memory is what the forward pass keeps for the backward pass: on CPU the bytes of all saved tensors, each storage once
and without parameters; on CUDA the peak of allocated memory above what was there before, which also holds gradients
and the one layer at a time that is computed again. Times are forward and backward, taken by turns.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import torch
from measuring import (
    MODELS,
    build_model,
    describe_machine,
    forward_and_backward,
    random_inputs,
    ratio_of_medians,
    time_by_turns,
)

from diffusers_mdm import NestedUNetModel

BATCH_SIZES = {"emoji": 32, "middle": 2}


@dataclasses.dataclass(frozen=True)
class CheckpointingCost:
    """What checkpointing of some levels makes of memory (bytes, and share of that without) and time (share)."""

    levels: tuple[int, ...]
    memory: int
    memory_factor: float
    time_factor: float


def checkpoint_levels(model: NestedUNetModel, levels: Iterable[int]) -> None:
    """Switch gradient checkpointing on in these levels, and off in all others."""
    model.enable_gradient_checkpointing()
    wanted = {id(module) for index in levels for module in model.levels[index].modules()}
    for module in model.modules():
        if hasattr(module, "gradient_checkpointing"):
            module.gradient_checkpointing = id(module) in wanted


def saved_bytes(model: NestedUNetModel, inputs: Mapping[str, Any]) -> int:
    """Bytes that one forward pass keeps for its backward pass, each storage once, without parameters and buffers."""
    known = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    kept: dict[int, torch.UntypedStorage] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage  # held, so that its address is not given to another one
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        predictions = model(**inputs).sample
    total = sum(storage.nbytes() for storage in kept.values())
    del predictions
    return total


def peak_bytes(model: NestedUNetModel, inputs: Mapping[str, Any]) -> int:
    """Most memory that CUDA had allocated during forward and backward, above what it had before."""
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    forward_and_backward(model, inputs)
    return torch.cuda.max_memory_allocated() - before


def measure_costs(
    model: NestedUNetModel, batch_size: int, rounds: int, device: str = "cpu"
) -> list[CheckpointingCost]:
    """Measure without checkpointing, with each level's alone, and with that of all."""
    every = tuple(range(model.num_levels))
    choices = list(dict.fromkeys([(), *((index,) for index in every), every]))
    inputs = random_inputs(model, [batch_size] * model.num_levels, device)
    memory_of = peak_bytes if torch.device(device).type == "cuda" else saved_bytes

    def run(levels: tuple[int, ...]) -> None:
        checkpoint_levels(model, levels)
        forward_and_backward(model, inputs)

    memory = {}
    for levels in choices:
        checkpoint_levels(model, levels)
        memory[levels] = memory_of(model, inputs)
    seconds = time_by_turns({str(levels): partial(run, levels) for levels in choices}, rounds)
    return [
        CheckpointingCost(
            levels,
            memory[levels],
            memory[levels] / memory[()],
            ratio_of_medians(seconds[str(levels)], seconds["()"]),
        )
        for levels in choices
    ]


def main(argv: list[str] | None = None) -> None:
    """Measure each model and print its table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--batch_size", type=int, help=f"rows at every level (default: {BATCH_SIZES})")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args(argv)
    what = "peak memory" if torch.device(args.device).type == "cuda" else "saved for backward"
    print(describe_machine(args.device))
    for name in args.models:
        model = build_model(name).to(args.device).train()
        batch_size = args.batch_size or BATCH_SIZES[name]
        print(f"{name}, {model.sample_sizes} pixels, {batch_size} rows, medians of {args.rounds}")
        print(f"| checkpointed levels | {what} | memory factor | time factor |\n|---|--:|--:|--:|")
        for cost in measure_costs(model, batch_size, args.rounds, args.device):
            levels = ", ".join(map(str, cost.levels)) or "none"
            print(f"| {levels} | {cost.memory / 2**20:.1f} MiB | {cost.memory_factor:.2f} | {cost.time_factor:.2f} |")


if __name__ == "__main__":
    main()
