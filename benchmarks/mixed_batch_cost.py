# SPDX-License-Identifier: Apache-2.0
"""Measure the cost of a mixed-resolution batch: time saved compared with operations saved.

With batch fractions 1 and 1/2 the outer level runs on half of the batch. Forward and backward of such a batch and of a
full one are timed alternately; the ratio of the medians is compared with the ratio of the counted operations.
"""

from __future__ import annotations

import argparse
import dataclasses

from measuring import (
    MODELS,
    build_model,
    count_flops,
    describe_machine,
    forward_and_backward,
    memory_format_on,
    random_inputs,
    ratio_of_medians,
    time_by_turns,
)

from diffusers_mdm import NestedUNetModel

BATCH_SIZES = {"emoji": 32, "middle": 4}


@dataclasses.dataclass(frozen=True)
class MixedBatchCost:
    """Cost of a mixed batch relative to a full one: measured time, and counted operations."""

    samples_per_level: list[int]
    measured: float
    counted: float


def measure_cost(
    model: NestedUNetModel, batch_size: int, fractions: list[float], rounds: int, device: str = "cpu"
) -> MixedBatchCost:
    """Compare a batch of which level i receives the fraction `fractions[i]` with one that every level receives
    whole.
    """
    mixed = [int(fraction * batch_size) for fraction in fractions]
    if len(mixed) != model.num_levels or mixed[0] != batch_size or mixed[-1] < 1:
        raise ValueError(
            f"Fractions {fractions} of a batch of {batch_size} are {mixed} samples; expected {model.num_levels} "
            f"numbers, the first of them 1, that leave each level at least one sample."
        )
    batches = {"mixed": mixed, "full": [batch_size] * model.num_levels}
    inputs = {name: random_inputs(model, rows, device) for name, rows in batches.items()}
    calls = {
        "mixed": lambda: forward_and_backward(model, inputs["mixed"]),
        "full": lambda: forward_and_backward(model, inputs["full"]),
    }
    seconds = time_by_turns(calls, rounds)
    counted = count_flops(calls["mixed"]) / count_flops(calls["full"])
    return MixedBatchCost(mixed, ratio_of_medians(seconds["mixed"], seconds["full"]), counted)


def main(argv: list[str] | None = None) -> None:
    """Measure each model and print one line for it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--fractions", type=float, nargs="+", default=[1.0, 0.5], help="of the batch, innermost first")
    parser.add_argument("--batch_size", type=int, help=f"size of the full batch (default: {BATCH_SIZES})")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args(argv)
    print(describe_machine(args.device))
    for name in args.models:
        model = build_model(name).to(args.device, memory_format=memory_format_on(args.device)).train()
        batch_size = args.batch_size or BATCH_SIZES[name]
        cost = measure_cost(model, batch_size, args.fractions, args.rounds, args.device)
        print(
            f"{name}, {model.sample_sizes} pixels, {batch_size} rows: rows per level {cost.samples_per_level} take "
            f"{cost.measured:.3f} of the full batch's time (medians of {args.rounds}) and {cost.counted:.3f} of its "
            f"operations; time / operations = {cost.measured / cost.counted:.2f}"
        )


if __name__ == "__main__":
    main()
