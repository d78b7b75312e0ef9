# SPDX-License-Identifier: Apache-2.0
"""`diffusers-mdm info`: what a model consists of, without loading its weights."""

import argparse
import json
from collections.abc import Sequence

from ..command_parsing import command_parser
from ..training.commands.flag_values import count

DESCRIPTION = """\
Describe a pipeline or model folder, or a Hub id, without loading its weights: levels, parameters, noise schedule,
defaults, sizes on disk, and the memory that generating takes.

  {0} my-model
  {0} my-model --batch_size 8 --dtype bfloat16
  {0} my-model --json
"""
DTYPES = ("float32", "bfloat16", "float16")


def build_parser(program: str) -> argparse.ArgumentParser:
    """Return the parser."""
    parser = command_parser(program, DESCRIPTION.format(program), max_help_position=28)
    parser.add_argument("model", metavar="MODEL", help="pipeline or model folder, or Hub id")
    parser.add_argument("--batch_size", type=count, default=1, metavar="N", help="for the memory (default 1)")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="for the memory (default float32)")
    parser.add_argument("--revision", metavar="NAME", help="of a Hub id")
    parser.add_argument("--json", action="store_true", help="print JSON, with sizes in bytes")
    return parser


def run(program: str, arguments: Sequence[str]) -> int:
    """Print the description."""
    args = build_parser(program).parse_args(arguments)
    from .model_facts import describe, read_facts

    facts = read_facts(args.model, args.batch_size, args.dtype, args.revision)
    print(json.dumps(facts, indent=2, ensure_ascii=False) if args.json else describe(facts))
    return 0
