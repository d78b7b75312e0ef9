# SPDX-License-Identifier: Apache-2.0
"""Measure memory saved and time added by gradient checkpointing, for each level alone and for all levels.

Memory is what the forward pass keeps for the backward pass: on CPU the bytes of all saved tensors, each storage
counted once and without parameters; on CUDA the peak of allocated memory above that before the pass, which also
includes gradients and the one layer at a time that is recomputed. Times are for forward and backward, measured
alternately.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from measuring import (
    MODELS,
    build_model,
    bytes_kept_by,
    describe_machine,
    forward_and_backward,
    memory_format_on,
    random_inputs,
    ratio_of_medians,
    time_by_turns,
)

from diffusers_mdm import NestedUNetModel
from diffusers_mdm.training.loop.stage_setup import checkpoint_levels

BATCH_SIZES = {"emoji": 32, "middle": 2}


@dataclasses.dataclass(frozen=True)
class CheckpointingCost:
    """Memory (bytes, and relative to no checkpointing) and relative time when some levels are checkpointed."""

    levels: tuple[int, ...]
    memory: int
    memory_factor: float
    time_factor: float


def saved_bytes(model: NestedUNetModel, inputs: Mapping[str, Any]) -> int:
    """Bytes that one forward pass keeps for its backward pass."""
    return bytes_kept_by(model, lambda: model(**inputs).sample)


def peak_bytes(model: NestedUNetModel, inputs: Mapping[str, Any]) -> int:
    """Return the peak of CUDA memory allocated during forward and backward, above that before."""
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    forward_and_backward(model, inputs)
    return torch.cuda.max_memory_allocated() - before


def measure_costs(
    model: NestedUNetModel, batch_size: int, rounds: int, device: str = "cpu"
) -> list[CheckpointingCost]:
    """Measure without checkpointing, with each level checkpointed alone, and with all levels checkpointed."""
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
    """Measure each model and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--batch_size", type=int, help=f"batch size (default: {BATCH_SIZES})")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args(argv)
    what = "peak memory" if torch.device(args.device).type == "cuda" else "saved for backward"
    print(describe_machine(args.device))
    for name in args.models:
        model = build_model(name).to(args.device, memory_format=memory_format_on(args.device)).train()
        batch_size = args.batch_size or BATCH_SIZES[name]
        print(f"{name}, {model.sample_sizes} pixels, batch of {batch_size}, medians of {args.rounds}")
        print(f"| checkpointed levels | {what} | memory factor | time factor |\n|---|--:|--:|--:|")
        for cost in measure_costs(model, batch_size, args.rounds, args.device):
            levels = ", ".join(map(str, cost.levels)) or "none"
            print(f"| {levels} | {cost.memory / 2**20:.1f} MiB | {cost.memory_factor:.2f} | {cost.time_factor:.2f} |")


if __name__ == "__main__":
    main()
