# SPDX-License-Identifier: Apache-2.0
r"""Encode all captions of a data set once, so that training needs no text encoder in memory.

    python training/precompute_text_embeddings.py --recipe training/recipes/cc12m_64.yaml --embeddings_dir features
    accelerate launch training/train_text_to_image_mdm.py --recipe training/recipes/cc12m_64.yaml \
        --embeddings_dir features --output_dir my-model

Pass the same data flags as for training. Repeating the command continues where it stopped, and adds new captions.
"""

PARSES_FIRST = True  # see diffusers_mdm/__init__.py

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from diffusers_mdm.training.commands.data_flags import DATA
from diffusers_mdm.training.commands.flag_table import FLAGS, SAVE_PRECISIONS
from diffusers_mdm.training.commands.flag_values import Flag, count
from diffusers_mdm.training.commands.messages import mistakes_in_one_line
from diffusers_mdm.training.commands.parser import OneLineParser, add_flag, given_flags

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


def build_parser() -> argparse.ArgumentParser:
    """Return the parser; flags that are not given are absent from its result."""
    parser = OneLineParser(
        description=__doc__,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--embeddings_dir", type=Path, required=True, metavar="FOLDER", help="folder for the features")
    for title, flags in {"as in training": SHARED, "here alone": OWN}.items():
        group = parser.add_argument_group(title)
        for flag in flags:
            add_flag(group, flag)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command; user errors end the program with one line that says what to do."""
    parser = build_parser()
    given = given_flags(parser, sys.argv[1:] if argv is None else argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    folder = given.pop("embeddings_dir")
    from diffusers_mdm.training.commands.caption_encoding import encode_captions

    with mistakes_in_one_line():
        encode_captions(given, folder)


if __name__ == "__main__":
    main()
