# SPDX-License-Identifier: Apache-2.0
"""`diffusers-mdm precompute` and `training/precompute_text_embeddings.py`: encode all captions before training."""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from ...command_parsing import command_parser
from ...training.commands.data_flags import DATA
from ...training.commands.flag_table import FLAGS, SAVE_PRECISIONS
from ...training.commands.flag_values import Flag, count
from ...training.commands.parser import add_flag, given_flags

DESCRIPTION = """\
Encode all captions of a data set once, so that training needs no text encoder in memory.

  {0} --recipe my-recipe.yaml --embeddings_dir features

Pass the same data flags as for training, and then --embeddings_dir to the training command. Repeating the command
continues where it stopped, and adds new captions.
"""
SHARED = [
    *(FLAGS[name] for name in ("recipe", "pretrained_model_name_or_path", "revision", "variant")),
    *(flag for flag in DATA if flag.name not in ("embeddings_dir", "dataloader_num_workers")),
    *(FLAGS[name] for name in ("instance_data_dir", "instance_prompt", "with_prior_preservation", "class_data_dir")),
    *(FLAGS[name] for name in ("class_prompt", "validation_prompts", "validation_prompt", "max_sequence_length")),
]
OWN = (
    Flag(
        "precision",
        None,
        "the encoder runs in, and features are kept in (default: the recipe's)",
        str,
        SAVE_PRECISIONS,
    ),
    Flag("batch_size", None, "captions of equal length that are encoded together (default 32)", count),
    Flag("captions_per_file", None, "(default 8192); each finished file counts when the command is repeated", count),
)


def build_parser(program: str) -> argparse.ArgumentParser:
    """Return the parser; flags that are not given are absent from its result."""
    parser = command_parser(program, DESCRIPTION.format(program), argument_default=argparse.SUPPRESS)
    parser.add_argument("--embeddings_dir", type=Path, required=True, metavar="FOLDER", help="folder for the features")
    for title, flags in {"as in training": SHARED, "here alone": OWN}.items():
        group = parser.add_argument_group(title)
        for flag in flags:
            add_flag(group, flag)
    return parser


def run(program: str, arguments: Sequence[str]) -> int:
    """Encode the captions that the flags describe."""
    given = given_flags(build_parser(program), arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    folder = given.pop("embeddings_dir")
    from ...training.commands.caption_encoding import encode_captions

    encode_captions(given, folder)
    return 0
