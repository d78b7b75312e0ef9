# SPDX-License-Identifier: Apache-2.0
"""Time one forward pass against the published semantics in plain form (`plain_unet.py`), with the same weights.

The variants take turns in one run. Beside them stands the time that the products and convolutions of a pass need
when each runs alone on the same machine: a pass cannot be faster than that.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from machine import clock_of, describe_machine, seconds_of_operations
from measuring import MODELS, build_model, count_flops, ratio_of_medians, time_by_turns
from plain_unet import PlainUNet
from results_table import report, spelled, summary

from diffusers_mdm import LevelConfig, NestedUNetModel

TEXT_WIDTH, TEXT_LENGTH = 2048, 32  # FLAN-T5 XL
OUTER_LEVEL = LevelConfig(
    block_out_channels=(64, 128, 256),
    layers_per_block=(2, 2, 1),
    attention_layers_per_block=(0, 0, 0),
    micro_conditioning_defaults=(256.0,),
)


def build(name: str) -> NestedUNetModel:
    """A model by its name: "emoji" and "middle" of `measuring`, "64" and "256" are of the published sizes."""
    if name in MODELS:
        return build_model(name).eval()
    model = NestedUNetModel(encoder_hid_dim=TEXT_WIDTH, cross_attention_dim=TEXT_WIDTH)
    return (model.add_level(OUTER_LEVEL) if name == "256" else model).eval()


def measure(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """One row of the table."""
    dtype = getattr(torch, args.dtype)
    model = build(name)
    plain = PlainUNet(model).eval().to(args.device, dtype)
    model = model.to(args.device, dtype).to(memory_format=torch.channels_last)
    draw, rows = torch.Generator().manual_seed(0), args.batch_size
    width = model.config.encoder_hid_dim or model.config.cross_attention_dim
    place = {"device": args.device, "dtype": dtype}
    sample = [torch.randn(rows, 3, side, side, generator=draw).to(**place) for side in model.sample_sizes]
    timestep = torch.full((rows,), 500, device=args.device)
    text = torch.randn(rows, TEXT_LENGTH, width, generator=draw).to(**place)
    with torch.no_grad():
        known_text = model.encode_text(text, with_keys_values=True)
        calls = {
            "plain": lambda: plain(sample, timestep, text),
            "ours": lambda: model(sample, timestep, known_text).sample,
        }
        difference = max(
            (one - other).abs().max().item() for one, other in zip(calls["plain"](), calls["ours"](), strict=True)
        )
        clock = clock_of(args.device)
        seconds = time_by_turns(calls, args.rounds, clock)
        needed = seconds_of_operations(calls["ours"], clock)
        flops = {variant: count_flops(call) for variant, call in calls.items()}
    ours = summary(seconds["ours"])
    return {
        "model": name,
        "rows": rows,
        "plain": spelled(summary(seconds["plain"])),
        "ours": spelled(ours),
        "plain / ours": f"{ratio_of_medians(seconds['plain'], seconds['ours']):.2f}",
        "GFLOP, plain and ours": f"{flops['plain'] / 1e9:.1f}, {flops['ours'] / 1e9:.1f}",
        "ours, GFLOP/s": f"{flops['ours'] / ours['min'] / 1e9:.1f}",
        "share of the machine's rate": f"{needed / ours['min']:.0%}",
        "largest difference": f"{difference:.1e}",
    }


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command's flags."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=[*MODELS, "64", "256"])
    parser.add_argument("--batch_size", type=int, default=2, help="2 rows are one picture with guidance")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--output", help="write the results as JSON")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Measure every model."""
    args = parse_args(argv)
    rows = [measure(name, args) for name in args.models]
    report(f"One forward pass, {args.dtype}", describe_machine(args.device), rows, args.output)


if __name__ == "__main__":
    main()
