# SPDX-License-Identifier: Apache-2.0
"""`diffusers-mdm train autoencoder` and `training/train_autoencoder.py`: a small autoencoder for models on latents."""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...command_parsing import command_parser
from ...training.commands.flag_values import count, number

DESCRIPTION = """\
Train a small AutoencoderKL on images, for a model on latents (`vae: {{pretrained: ...}}` in its recipe).

  {0} --train_data_dir my-images --resolution 64 --output_dir my-autoencoder

It learns from squared errors alone, so its reconstructions are somewhat blurred. For photographs of 128 pixels and
more, prefer an autoencoder that others have trained.
"""


def build_parser(program: str) -> argparse.ArgumentParser:
    """Return the parser; flags that are not given are absent from its result."""
    parser = command_parser(program, DESCRIPTION.format(program), argument_default=argparse.SUPPRESS)
    where = parser.add_argument_group("data and output")
    where.add_argument("--train_data_dir", required=True, help="folder of images or parquet files, or a Hub data set")
    where.add_argument("--image_column", help="column with the images (default image)")
    where.add_argument("--output_dir", type=Path, required=True, help="folder for the autoencoder; must not exist")
    shape = parser.add_argument_group("autoencoder")
    shape.add_argument("--resolution", type=count, help="side of the images in pixels (default 64)")
    shape.add_argument(
        "--block_out_channels",
        type=count,
        nargs="+",
        help="channels at each resolution, finest first; each after the first halves the latents (default 32 64)",
    )
    shape.add_argument("--latent_channels", type=count, help="channels of the latents (default 4)")
    shape.add_argument("--layers_per_block", type=count, help="residual layers at each resolution (default 1)")
    shape.add_argument("--norm_num_groups", type=count, help="of the group norms; divides all channels (default 8)")
    shape.add_argument("--attention", action="store_true", help="with attention in the middle")
    training = parser.add_argument_group("training")
    training.add_argument("--max_train_steps", type=count, dest="steps", help="optimizer steps (default 1000)")
    training.add_argument("--train_batch_size", type=count, dest="batch_size", help="images per step (default 32)")
    training.add_argument("--learning_rate", type=number, help="(default 2e-3)")
    training.add_argument("--kl_weight", type=number, help="weight of the KL divergence (default 1e-4)")
    training.add_argument("--seed", type=int, help="of weights, order and noise (default 0)")
    training.add_argument("--device", help="such as cuda (default: a GPU if there is one)")
    return parser


def run(program: str, arguments: Sequence[str]) -> int:
    """Train the autoencoder that the flags describe."""
    given: dict[str, Any] = vars(build_parser(program).parse_args(arguments))
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    data = {"path": given.pop("train_data_dir"), "caption": ""}
    if "image_column" in given:
        data["image_column"] = given.pop("image_column")
    folder, device = given.pop("output_dir"), given.pop("device", None)
    if "block_out_channels" in given:
        given["block_out_channels"] = tuple(given["block_out_channels"])
    from accelerate import PartialState

    from ...training.loop.autoencoder import AutoencoderRecipe, train_autoencoder
    from ...training.recipe.data import DataRecipe

    train_autoencoder(AutoencoderRecipe(**given), DataRecipe(**data), folder, device or PartialState().device)
    return 0
