# SPDX-License-Identifier: Apache-2.0
"""`diffusers-mdm estimate`: how many GPU hours a recipe takes, from counted operations and an assumed utilisation."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from ..command_parsing import OneLineParser
from ..training.commands.flag_values import count, number

DESCRIPTION = """\
Estimate the GPU hours of a recipe: the operations of every stage, counted on a model without weights, divided by the
rate of a GPU and by the share of that rate which training is assumed to reach.

  {0} --recipe training/recipes/imagenet_256.yaml --num_processes 8

The default rate, 989 TFLOP/s, is that of an H100 in bf16. The default utilisation, 0.1, is what one training step of
the published sizes reached on an H100 (benchmarks/README.md); small batches reach less.
"""


def build_parser(program: str) -> argparse.ArgumentParser:
    """Return the parser."""
    parser = OneLineParser(
        prog=program,
        description=DESCRIPTION.format(program),
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--recipe", type=Path, required=True, help="YAML or JSON")
    parser.add_argument("--num_processes", type=count, default=1, help="GPUs that share a step (default 1)")
    parser.add_argument("--tflops", type=number, default=989.0, help="rate of one GPU, TFLOP/s (default 989)")
    parser.add_argument("--utilisation", type=number, default=0.1, help="share of it that is reached (default 0.1)")
    return parser


def run(program: str, arguments: Sequence[str]) -> int:
    """Print the estimate."""
    args = build_parser(program).parse_args(arguments)
    from ..training.commands.compute_estimate import Gpu, describe_compute
    from ..training.recipe.loading import load_recipe

    print(describe_compute(load_recipe(args.recipe), Gpu(args.tflops, args.utilisation), args.num_processes))
    return 0
