# SPDX-License-Identifier: Apache-2.0
"""`diffusers-mdm shards`: write the records of a streamed data set as WebDataset shards."""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...command_parsing import command_parser
from ...training.commands.flag_values import count, natural

DESCRIPTION = """\
Stream a data set from the Hub or a folder, and write it as WebDataset shards for --shards, without loading all of it.

  {0} --dataset_name ILSVRC/imagenet-1k --label_column label --short_side 256 --output_dir imagenet/train

The same command continues where it was interrupted. Images keep their files, unless they are made smaller.
"""


def build_parser(program: str) -> argparse.ArgumentParser:
    """Return the parser; flags that are not given are absent from its result."""
    parser = command_parser(program, DESCRIPTION.format(program), argument_default=argparse.SUPPRESS)
    add = parser.add_argument
    add("--dataset_name", dest="path", required=True, help="data set on the Hub, or folder of parquet or tar files")
    add("--dataset_config_name", dest="config_name", help="configuration of the data set")
    add("--split", help="which records (default train)")
    add("--output_dir", type=Path, required=True, help="folder for the shards 00000.tar, 00001.tar …")
    add("--image_column", help="column with the images (default image)")
    add("--video_column", help="column with clips, which are written as they are, instead of images")
    add("--caption_column", help="column with the captions (default: none are written)")
    add("--label_column", help="column with the classes (default: none are written)")
    add("--short_side", type=count, help="reduce images to this length of their shorter side, in pixels")
    add("--samples_per_shard", type=count, help="records per shard (default 1000)")
    add("--first_shard", type=natural, help="number of the first shard, to share the work (default 0)")
    add("--num_shards", type=count, help="number of shards (default: all that follow)")
    add("--max_skipped_images", type=natural, dest="max_skipped", help="unusable records to accept (default 100)")
    return parser


def run(program: str, arguments: Sequence[str]) -> int:
    """Write the shards."""
    given: dict[str, Any] = vars(build_parser(program).parse_args(arguments))
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    folder = given.pop("output_dir")
    from ...training.data.shards.writer import ShardSource, write_shards

    written = write_shards(ShardSource(**given), folder)
    print(f"{written:,} samples were written into {folder}.")
    return 0
