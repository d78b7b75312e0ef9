# SPDX-License-Identifier: Apache-2.0
"""Time the forward pass of the full-size models, compared with the same models using plain einsum attention.

The two variants alternate within one run, so that other load on the machine affects both alike; the result is the
ratio of their medians.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from measuring import describe_machine

from diffusers_mdm import LevelConfig, NestedUNetModel
from diffusers_mdm.models.layers import MatryoshkaAttnProcessor

TEXT_WIDTH = 2048  # FLAN-T5 XL
TEXT_LENGTH = 32
NUM_PARAMETERS = {64: 461_359_107, 256: 476_613_958}
OUTER_LEVEL = LevelConfig(
    block_out_channels=(64, 128, 256),
    layers_per_block=(2, 2, 1),
    attention_layers_per_block=(0, 0, 0),
    micro_conditioning_defaults=(256.0,),
)


class EinsumAttnProcessor(MatryoshkaAttnProcessor):
    """Attention as ml-mdm's SelfAttention writes it: einsum, softmax in float32, the scale split over q and k."""

    def dispatch(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None
    ) -> torch.Tensor:
        """softmax(q k^T / sqrt(d)) v on `(B, N, heads, d)`; `mask` `(B, 1, 1, L)` is True for keys that are attended
        to.
        """
        scale = query.shape[-1] ** -0.25
        scores = torch.einsum("bqhd,bkhd->bhqk", query * scale, key * scale)
        if mask is not None:
            scores = scores.masked_fill(~mask, -torch.inf)
        weights = scores.float().softmax(dim=-1).to(value.dtype)
        return torch.einsum("bhqk,bkhd->bqhd", weights, value)


def build_model(size: int) -> NestedUNetModel:
    """Build the published model for images of `size` pixels, with random weights."""
    model = NestedUNetModel(encoder_hid_dim=TEXT_WIDTH, cross_attention_dim=TEXT_WIDTH)
    if size == 256:
        model = model.add_level(OUTER_LEVEL)
    if model.num_parameters() != NUM_PARAMETERS[size]:
        raise ValueError(f"{model.num_parameters()} parameters instead of {NUM_PARAMETERS[size]}.")
    return model.eval()


@torch.no_grad()
def time_forward(model: NestedUNetModel, inputs: dict) -> tuple[float, torch.Tensor]:
    """Run once; return seconds and the prediction of the outermost level."""
    start = time.perf_counter()
    prediction = model(**inputs).sample[-1]
    if prediction.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start, prediction


def compare(model: NestedUNetModel, args: argparse.Namespace) -> None:
    """Alternate the two variants and print their medians and the ratio."""
    model = model.to(args.device)
    dtype = getattr(torch, args.dtype)
    if dtype != model.dtype:
        model = model.to(dtype)
    rows = args.batch_size
    draw = torch.Generator().manual_seed(0)
    place = {"device": args.device, "dtype": dtype}
    inputs = {
        "sample": [torch.randn(rows, 3, side, side, generator=draw).to(**place) for side in model.sample_sizes],
        "timestep": torch.full((rows,), 500, device=args.device),
        "encoder_hidden_states": torch.randn(rows, TEXT_LENGTH, model.config.encoder_hid_dim, generator=draw).to(
            **place
        ),
    }
    variants = {"native": MatryoshkaAttnProcessor, "einsum": EinsumAttnProcessor}
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    predictions = {}
    for round_index in range(-1, args.rounds):  # round -1 is a warm-up
        for name, processor in variants.items():
            model.set_attn_processor(processor())
            elapsed, predictions[name] = time_forward(model, inputs)
            if round_index >= 0:
                seconds[name].append(elapsed)
    native, einsum = (statistics.median(seconds[name]) for name in variants)
    difference = (predictions["native"] - predictions["einsum"]).abs().max().item()
    print(
        f"{model.sample_sizes[-1]} px, batch {rows}, {args.dtype}, {args.device}: "
        f"native {native:.3f} s, einsum {einsum:.3f} s, "
        f"native / einsum = {native / einsum:.3f} (medians of {args.rounds}), largest difference {difference:.1e}"
    )


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command's flags."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 256], choices=[64, 256])
    parser.add_argument("--batch_size", type=int, default=2, help="2 is one image with guidance")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Compare the variants at every size."""
    args = parse_args(argv)
    print(describe_machine(args.device))
    for size in args.sizes:
        compare(build_model(size), args)


if __name__ == "__main__":
    main()
