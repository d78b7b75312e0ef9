# SPDX-License-Identifier: Apache-2.0
"""Time one forward pass against the published semantics in plain form (`plain_unet.py`), with the same weights.

The variants take turns in one run. Beside them is the time that the products and convolutions of a pass need when each
runs alone on the same machine: a pass cannot be faster than that.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from machine import clock_of, seconds_of_operations
from measured_models import build, inputs_of, laid_out
from measuring import MODELS
from plain_unet import PlainUNet
from results_table import Results
from variants import DTYPES, add_flags, begin, compare, compiled, flops_of_batch, layout_of

from diffusers_mdm import NestedUNetModel


def plain_call(plain: PlainUNet, inputs: dict[str, Any]) -> Callable[[], list[torch.Tensor]]:
    """A pass in plain form."""
    return lambda: plain(inputs["sample"], inputs["timestep"], inputs["encoder_hidden_states"])


def our_call(
    model: NestedUNetModel, inputs: dict[str, Any], layout: torch.memory_format
) -> Callable[[], list[torch.Tensor]]:
    """A pass as a pipeline makes it: the text is encoded before."""
    text = model.encode_text(inputs["encoder_hidden_states"], with_keys_values=True)
    sample = laid_out(inputs["sample"], layout)
    return lambda: model(sample, inputs["timestep"], text, return_dict=False)[0]


@torch.no_grad()
def measure(model: NestedUNetModel, plain: PlainUNet, rows: int, way: str, args: argparse.Namespace) -> dict[str, Any]:
    """The end of one row of the table."""
    dtype, layout = DTYPES[args.dtype], layout_of(args)
    inputs = inputs_of(model, rows, args.device, dtype)
    flops = {
        "plain": flops_of_batch(lambda few: plain_call(plain, inputs_of(model, few, args.device, dtype)), rows),
        "ours": flops_of_batch(lambda few: our_call(model, inputs_of(model, few, args.device, dtype), layout), rows),
    }
    calls = {"plain": plain_call(plain, inputs), "ours": our_call(compiled(model, way), inputs, layout)}
    row = compare(calls, args, flops, images=rows)
    if way == "none" and isinstance(row["ours"], dict):
        repeats = 10 if args.device == "cuda" else 1
        needed = seconds_of_operations(calls["ours"], clock_of(args.device), repeats=repeats)
        row["share of the rate of its operations"] = needed / row["ours"]["min"]
    return row


def measure_model(name: str, args: argparse.Namespace, results: Results) -> None:
    """Measure every batch size and way to compile of a model."""
    model = build(name, args.device).eval().to(DTYPES[args.dtype])
    plain = PlainUNet(model).eval()
    model = model.to(memory_format=layout_of(args))
    for rows in args.batch_size:
        for way in args.compile:
            labels = {"model": name, "rows": rows, "compile": way}
            results.add(labels, partial(measure, model, plain, rows, way, args))


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command's flags."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_flags(parser, models=MODELS, batch_sizes=[2], rounds=5)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Measure every model."""
    args = parse_args(argv)
    results = begin("One forward pass", args)
    for name in args.models:
        with results.attempt({"model": name}):
            measure_model(name, args, results)
    results.finish()


if __name__ == "__main__":
    main()
