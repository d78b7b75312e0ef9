# SPDX-License-Identifier: Apache-2.0
"""Time a training step against one in plain form: forward, loss, backward, optimizer, average of weights.

Both train all levels with the mean squared error of v, and both begin with the same weights. Ours is laid out and
optimized as `training` does it: channels_last, fused AdamW, all averages in a few kernels.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any

import torch
from forward import TEXT_LENGTH, build
from machine import clock_of, describe_machine
from measuring import MODELS, count_flops, ratio_of_medians, time_by_turns
from plain_unet import PlainUNet
from results_table import report, spelled, summary

from diffusers_mdm.training.state.moving_average import Average

LEARNING_RATE, DECAY = 1e-4, 0.999


def error(predictions: Sequence[torch.Tensor], targets: Sequence[torch.Tensor]) -> torch.Tensor:
    """Sum over levels of the mean squared errors."""
    return torch.stack([(one - other).square().mean() for one, other in zip(predictions, targets, strict=True)]).sum()


def plain_step(model: PlainUNet, inputs: dict[str, Any], targets: list[torch.Tensor]) -> Callable[[], float]:
    """A step as it is written first: one parameter after another."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, foreach=False, fused=False)
    shadows = [parameter.detach().clone() for parameter in model.parameters()]

    def step() -> float:
        loss = error(model(**inputs), targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=False)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            for shadow, parameter in zip(shadows, model.parameters(), strict=True):
                shadow.mul_(DECAY).add_((1 - DECAY) * parameter)
        return loss.item()

    return step


def our_step(model: torch.nn.Module, inputs: dict[str, Any], targets: list[torch.Tensor]) -> Callable[[], float]:
    """A step as `training` takes it."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, fused=True)
    parameters = dict(model.named_parameters())
    average = Average({name: value.detach().clone() for name, value in parameters.items()}, decay=DECAY)

    def step() -> float:
        loss = error(model(**inputs).sample, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        average.update(parameters)
        return loss.item()

    return step


def measure(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """One row of the table."""
    model = build(name).train()
    plain = PlainUNet(model).train()
    model = model.to(memory_format=torch.channels_last)
    draw, rows = torch.Generator().manual_seed(0), args.batch_size
    sides, width = model.sample_sizes, model.config.encoder_hid_dim or model.config.cross_attention_dim
    inputs = {
        "sample": [torch.randn(rows, 3, side, side, generator=draw) for side in sides],
        "timestep": torch.randint(0, 1000, (rows,), generator=draw),
        "encoder_hidden_states": torch.randn(rows, TEXT_LENGTH, width, generator=draw),
    }
    targets = [torch.randn(rows, 3, side, side, generator=draw) for side in sides]
    laid_out = [level.contiguous(memory_format=torch.channels_last) for level in inputs["sample"]]
    steps = {
        "plain": plain_step(plain, inputs, targets),
        "ours": our_step(model, {**inputs, "sample": laid_out}, targets),
    }
    losses = {variant: step() for variant, step in steps.items()}
    flops = {variant: count_flops(step) for variant, step in steps.items()}
    seconds = time_by_turns(steps, args.rounds, clock_of("cpu"))
    return {
        "model": name,
        "rows": rows,
        "plain": spelled(summary(seconds["plain"])),
        "ours": spelled(summary(seconds["ours"])),
        "plain / ours": f"{ratio_of_medians(seconds['plain'], seconds['ours']):.2f}",
        "GFLOP, plain and ours": f"{flops['plain'] / 1e9:.1f}, {flops['ours'] / 1e9:.1f}",
        "difference of the first loss": f"{abs(losses['plain'] - losses['ours']):.1e}",
    }


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command's flags."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=["emoji"], choices=[*MODELS, "64", "256"])
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", help="write the results as JSON")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Measure every model."""
    args = parse_args(argv)
    rows = [measure(name, args) for name in args.models]
    report("One training step, float32", describe_machine("cpu"), rows, args.output)


if __name__ == "__main__":
    main()
