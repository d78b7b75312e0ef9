# SPDX-License-Identifier: Apache-2.0
r"""Encode all captions of a data set once, so that training needs no text encoder in memory.

    python training/precompute_text_embeddings.py --recipe training/recipes/cc12m_64.yaml --embeddings_dir features
    accelerate launch training/train_text_to_image_mdm.py --recipe training/recipes/cc12m_64.yaml \
        --embeddings_dir features --output_dir my-model

Give the flags of pictures and captions that training will have. Repeating the command goes on where it stopped, and
adds captions that are new.
"""

import argparse
import dataclasses
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from diffusers_mdm.training.commands.fine_tuning import frozen_text_encoder, texts_of
from diffusers_mdm.training.commands.flag_table import DATA, FLAGS, Flag, count
from diffusers_mdm.training.commands.flags import (
    OneLineParser,
    add_flag,
    base_recipe,
    check_together,
    given_flags,
    override,
)
from diffusers_mdm.training.commands.messages import one_line
from diffusers_mdm.training.data.text.features_writer import CaptionEncoder, write_text_embeddings
from diffusers_mdm.training.precision import DTYPES
from diffusers_mdm.training.recipe.recipe import Recipe
from diffusers_mdm.training.state.run import RunOptions

SHARED = [
    *(FLAGS[name] for name in ("recipe", "pretrained_model_name_or_path", "revision", "variant")),
    *(flag for flag in DATA if flag.name not in ("embeddings_dir", "dataloader_num_workers")),
    *(FLAGS[name] for name in ("instance_data_dir", "instance_prompt", "with_prior_preservation", "class_data_dir")),
    *(FLAGS[name] for name in ("class_prompt", "validation_prompts", "validation_prompt", "max_sequence_length")),
]
OWN = (
    Flag("precision", None, "the encoder runs in, and features are kept in (default: the recipe's)", str, (*DTYPES,)),
    Flag("batch_size", None, "captions of equal length that are encoded together (default 32)", count),
    Flag("captions_per_file", None, "(default 8192); each finished file counts when the command is repeated", count),
)


def build_parser() -> argparse.ArgumentParser:
    """The command's flags; those that are not given are absent from the result."""
    parser = OneLineParser(
        description=__doc__,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--embeddings_dir", type=Path, required=True, metavar="X", help="folder to write")
    for title, flags in {"as in training": SHARED, "here alone": OWN}.items():
        group = parser.add_argument_group(title)
        for flag in flags:
            add_flag(group, flag)
    return parser


def read_recipe(given: dict[str, Any]) -> Recipe:
    """What training with these flags would be; how long it takes does not matter here.

    Raises:
        ValueError: the flags contradict each other, or the recipe or the data does not fit.
    """
    check_together(given)
    recipe = override(*base_recipe({**given, "max_train_steps": 1}))
    pictures = recipe.pictures and dataclasses.replace(recipe.pictures, embeddings_dir=None)
    return dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, embeddings_dir=None), pictures=pictures)


def write(recipe: Recipe, folder: Path, given: dict[str, Any]) -> None:
    """Encode the recipe's texts into `folder`.

    Raises:
        ValueError: the recipe has no text encoder that stays as it is, or the folder belongs to another one.
    """
    options = RunOptions(output_dir=folder, cache_dir=given.get("cache_dir"))
    source, text_encoder, tokenizer = frozen_text_encoder(recipe, options)
    own = "fp32" if recipe.mixed_precision == "no" else recipe.mixed_precision
    torch.nn.Module.to(text_encoder, PartialState().device, DTYPES[given.get("precision", own)]).eval()
    encoder = CaptionEncoder(source, text_encoder, tokenizer, recipe.max_sequence_length, given.get("batch_size", 32))
    index = write_text_embeddings(folder, texts_of(recipe), encoder, given.get("captions_per_file", 8192))
    logging.getLogger(__name__).info("%d captions are in %s.", sum(index.files.values()), folder)


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line and write; mistakes end the program with one line that says what to do."""
    parser = build_parser()
    given = given_flags(parser, sys.argv[1:] if argv is None else argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    folder = given.pop("embeddings_dir")
    try:
        write(read_recipe(given), folder, given)
    except (ValueError, OSError) as error:
        sys.exit(f"{Path(sys.argv[0]).name}: error: {one_line(error)}")


if __name__ == "__main__":
    main()
