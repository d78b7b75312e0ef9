# SPDX-License-Identifier: Apache-2.0
"""`diffusers-mdm estimate`: how many GPU hours a recipe takes, from counted operations and an assumed utilisation."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...command_parsing import command_parser
from ...training.commands.flag_values import count, number

DESCRIPTION = """\
Estimate the GPU hours of a recipe: the operations of every stage, counted on a model without weights, divided by the
rate of a GPU and by the share of that rate which training is assumed to reach.

  {0} --recipe imagenet_256 --num_processes 8

The defaults are measured on an H100 (benchmarks/README.md): its matrix products in bf16 reached 800 TFLOP/s, and
training steps of the published models with batches of 16 images a tenth of that. Smaller batches reach less.
"""


def build_parser(program: str) -> argparse.ArgumentParser:
    """Return the parser; flags that are not given are absent from its result."""
    parser = command_parser(program, DESCRIPTION.format(program), argument_default=argparse.SUPPRESS)
    parser.add_argument("--recipe", type=Path, required=True, help="file, or the name of a recipe of the package")
    parser.add_argument("--num_processes", type=count, help="GPUs that share a step (default 1)")
    parser.add_argument("--tflops", type=number, help="rate of one GPU, TFLOP/s (default 800)")
    parser.add_argument("--utilisation", type=number, help="fraction of it that is reached (default 0.1)")
    return parser


def run(program: str, arguments: Sequence[str]) -> int:
    """Print the estimate."""
    given: dict[str, Any] = vars(build_parser(program).parse_args(arguments))
    from ...training.costs.compute_estimate import Gpu, describe_compute
    from ...training.recipe.loading import find_recipe, load_recipe

    recipe, num_processes = load_recipe(find_recipe(given.pop("recipe"))), given.pop("num_processes", 1)
    print(describe_compute(recipe, Gpu(**given), num_processes))
    return 0
