# SPDX-License-Identifier: Apache-2.0
"""Time a training step against one in plain form: forward, loss, backward, optimizer, average of weights.

Both train all levels with the mean squared error of v, and both begin with the same weights, in float32; with
`--dtype bf16` under autocast. Ours is laid out and optimized as in `training`: channels_last on CPUs, fused AdamW,
all averages in a few kernels.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from measured_models import build, inputs_of, laid_out
from measuring import bytes_kept_by
from plain_unet import PlainUNet
from results_table import Results
from variants import MIB, add_flags, begin, compare, compiled, flops_of_batch, layout_of

from diffusers_mdm import NestedUNetModel
from diffusers_mdm.training.loop.stage_setup import checkpoint_levels
from diffusers_mdm.training.state.moving_average import Average

LEARNING_RATE, DECAY = 1e-4, 0.999
Loss = Callable[[], torch.Tensor]


def loss_of(model: torch.nn.Module, inputs: dict[str, Any], targets: Sequence[torch.Tensor], precision: str) -> Loss:
    """A function that predicts and returns the loss: the sum over levels of the mean squared errors."""
    device = targets[0].device.type

    def loss() -> torch.Tensor:
        with torch.autocast(device, dtype=torch.bfloat16, enabled=precision == "bf16"):
            output = model(**inputs)
        predictions = output if isinstance(output, list) else output.sample
        errors = [(one.float() - other).square().mean() for one, other in zip(predictions, targets, strict=True)]
        return torch.stack(errors).sum()

    return loss


def plain_step(model: PlainUNet, loss_of_batch: Loss) -> Callable[[], float]:
    """A step as it is written first: one parameter after another."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, foreach=False, fused=False)
    shadows = [parameter.detach().clone() for parameter in model.parameters()]

    def step() -> float:
        loss = loss_of_batch()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=False)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            for shadow, parameter in zip(shadows, model.parameters(), strict=True):
                shadow.mul_(DECAY).add_((1 - DECAY) * parameter)
        return loss.item()

    return step


def our_step(model: NestedUNetModel, loss_of_batch: Loss) -> Callable[[], float]:
    """A step as `training` takes it."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, fused=True)
    parameters = dict(model.named_parameters())
    average = Average({name: value.detach().clone() for name, value in parameters.items()}, decay=DECAY)

    def step() -> float:
        loss = loss_of_batch()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        average.update(parameters)
        return loss.item()

    return step


def losses(
    model: NestedUNetModel, plain: PlainUNet, rows: int, args: argparse.Namespace, way: str = "none"
) -> tuple[NestedUNetModel, dict[str, Loss]]:
    """The model, compiled in one of the ways, and the losses of a batch in both forms."""
    inputs = inputs_of(model, rows, args.device)
    targets = [torch.randn_like(level) for level in inputs["sample"]]
    ours = compiled(model, way)
    return ours, {
        "plain": loss_of(plain, inputs, targets, args.dtype),
        "ours": loss_of(ours, {**inputs, "sample": laid_out(inputs["sample"], layout_of(args))}, targets, args.dtype),
    }


def backward_of(model: NestedUNetModel, plain: PlainUNet, form: str, args: argparse.Namespace, rows: int) -> Loss:
    """The part of a step that multiplies matrices; gradients are thrown away."""
    loss = losses(model, plain, rows, args)[1][form]

    def run() -> torch.Tensor:
        value = loss()
        value.backward()
        for module in (model, plain):
            module.zero_grad(set_to_none=True)
        return value

    return run


def measure(name: str, rows: int, way: str, args: argparse.Namespace) -> dict[str, Any]:
    """The end of one row of the table."""
    model = build(name, args.device).train()
    plain = PlainUNet(model).train()
    model = model.to(memory_format=layout_of(args))
    checkpoint_levels(model, args.gradient_checkpointing_levels)
    flops = {form: flops_of_batch(partial(backward_of, model, plain, form, args), rows) for form in ("plain", "ours")}
    model, batch = losses(model, plain, rows, args, way)
    kept = {}
    if way == "none":
        modules = {"plain": plain, "ours": model}
        kept = {f"{form}, MiB kept for backward": bytes_kept_by(modules[form], batch[form]) / MIB for form in batch}
    steps = {"plain": plain_step(plain, batch["plain"]), "ours": our_step(model, batch["ours"])}
    return compare(steps, args, flops, images=rows) | kept


def measure_all(args: argparse.Namespace, results: Results) -> None:
    """Measure every model, batch size and way to compile."""
    for name in args.models:
        for rows in args.batch_size:
            for way in args.compile:
                results.add({"model": name, "rows": rows, "compile": way}, partial(measure, name, rows, way, args))


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command's flags."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_flags(parser, models=["emoji"], batch_sizes=[16], rounds=3)
    parser.add_argument(
        "--gradient_checkpointing_levels", type=int, nargs="*", default=[], help="levels that recompute, in our form"
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Measure every model."""
    args = parse_args(argv)
    results = begin("One training step", args)
    measure_all(args, results)
    results.finish()


if __name__ == "__main__":
    main()
