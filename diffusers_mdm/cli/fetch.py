# SPDX-License-Identifier: Apache-2.0
"""`diffusers-mdm fetch`: download a published checkpoint, convert it, and describe where it comes from."""

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..command_parsing import command_parser
from ..conversion.command_line import DTYPE_NAMES
from ..fetching.published import CHECKPOINTS, LICENCE_LINK, PUBLISHER, TEXT_ENCODER, PublishedCheckpoint
from ..training.commands.flag_values import count, number

DESCRIPTION = f"""\
Download one of the checkpoints that the authors of Matryoshka Diffusion Models have published, and convert it to a
pipeline folder. Apple's licence applies to them: {LICENCE_LINK}

  {{0}} flickr64 --output_dir mdm-64 --dtype bf16
  {{0}} flickr256 --output_dir mdm-256 --mirror https://my.mirror/mdm --sha256 0123…
  {{0}} flickr256 --output_dir mdm-256 --mirror downloads --without_text_encoder

An interrupted download continues when the command is repeated. Nothing in the file is executed. The publisher gives no
checksums; the one of the file is in the card, to compare.
"""


def build_parser(program: str) -> argparse.ArgumentParser:
    """Return the parser."""
    parser = command_parser(program, DESCRIPTION.format(program), max_help_position=30)
    known = "; ".join(f"{one.name}: {one.about}" for one in CHECKPOINTS.values())
    parser.add_argument("name", choices=tuple(CHECKPOINTS), metavar="NAME", help=known)
    parser.add_argument("--output_dir", type=Path, required=True, metavar="FOLDER", help="folder to create")
    source = parser.add_argument_group("download")
    source.add_argument(
        "--mirror",
        metavar="URL_OR_FOLDER",
        help=f"another place with the same files (NAME/vis_model.pth) than {PUBLISHER}",
    )
    source.add_argument("--sha256", metavar="HEX", help="checksum that the file must have")
    source.add_argument("--size", type=count, metavar="BYTES", help="size that the file must have")
    source.add_argument("--timeout", type=number, default=30.0, metavar="SECONDS", help="without a byte (default 30)")
    source.add_argument(
        "--attempts", type=count, default=5, metavar="N", help="in a row that bring nothing (default 5)"
    )
    source.add_argument(
        "--download_dir",
        type=Path,
        metavar="FOLDER",
        help="where the file is downloaded to, and kept (default: beside the output, and removed after conversion)",
    )
    conversion = parser.add_argument_group("conversion")
    conversion.add_argument(
        "--text_encoder",
        default=TEXT_ENCODER,
        metavar="FOLDER_OR_ID",
        help=f"text encoder of the pipeline (default {TEXT_ENCODER}, which the Hub sends: about 10 GB)",
    )
    conversion.add_argument("--without_text_encoder", action="store_true", help="write only unet/ and scheduler/")
    conversion.add_argument("--config_path", type=Path, metavar="FILE", help="another YAML config than the known one")
    conversion.add_argument("--dtype", choices=DTYPE_NAMES, help="save in this dtype (default: the weights' own)")
    conversion.add_argument("--level", type=count, metavar="N", help="keep only this many levels, from the innermost")
    return parser


def run(program: str, arguments: Sequence[str]) -> int:
    """Download, convert and describe a checkpoint."""
    parser = build_parser(program)
    args = parser.parse_args(arguments)
    if args.timeout <= 0:
        parser.error(f"--timeout is {args.timeout:g}; expected seconds above 0.")
    if args.without_text_encoder:
        args.text_encoder = None
    fetch(CHECKPOINTS[args.name], args)
    print(f"Wrote {args.output_dir}")
    return 0


def fetch(checkpoint: PublishedCheckpoint, args: argparse.Namespace) -> None:
    """Download a checkpoint, unless it is in a local folder, and write the pipeline folder.

    Args:
        checkpoint: what to fetch.
        args: the flags.

    Raises:
        ValueError: the file, the flags or an existing folder are wrong.
        OSError: a server cannot be reached, or a file cannot be read or written.
    """
    from ..conversion.write_pipeline import check_output_is_new
    from ..fetching.download import Expected, Limits, check_address, download

    check_output_is_new(args.output_dir)
    if args.level is not None and args.level > len(checkpoint.sides):
        raise ValueError(f"--level is {args.level}, but {checkpoint.name} has {len(checkpoint.sides)} level(s).")
    expected = Expected(args.size or checkpoint.size, args.sha256 or checkpoint.sha256)
    if args.text_encoder is not None:
        check_text_encoder(args.text_encoder)
    place = args.mirror or PUBLISHER
    if "://" not in place:
        path = local_file(Path(place), checkpoint)
        expected.check_size(path.stat().st_size, str(path))
        convert(checkpoint, path, path.name, expected.check_checksum(path, str(path)), args)
        return
    url = f"{place.rstrip('/')}/{checkpoint.file}"
    check_address(url)
    folder = args.download_dir or args.output_dir.with_name(f".{args.output_dir.name}.download")
    path = folder / f"{checkpoint.name}.pth"
    checksum = download(url, path, expected, Limits(args.timeout, args.attempts))
    try:
        convert(checkpoint, path, url, checksum, args)
    except ValueError as error:
        raise ValueError(f"{error} The downloaded file is {path}; remove it to download it again.") from error
    if args.download_dir is None:
        shutil.rmtree(folder)


def check_text_encoder(name: str) -> None:
    """Raise an OSError if a text encoder cannot be found, before the checkpoint is downloaded."""
    from transformers import AutoConfig

    AutoConfig.from_pretrained(name)


def local_file(folder: Path, checkpoint: PublishedCheckpoint) -> Path:
    """Return the path of a checkpoint in a folder that mirrors the publisher's.

    Raises:
        ValueError: it is not there.
    """
    path = folder / checkpoint.file
    if not path.is_file():
        raise ValueError(f"{path} does not exist; --mirror needs a folder with {checkpoint.file} in it.")
    return path


def convert(checkpoint: PublishedCheckpoint, path: Path, source: str, checksum: str, args: argparse.Namespace) -> None:
    """Convert a downloaded checkpoint to the folder that the flags describe, with its card."""
    from ..conversion.apple_mdm import UNUSED_FILE, convert_apple_checkpoint
    from ..conversion.folder_command import convert_to_folder
    from ..fetching.card import fetched_card
    from ..public_names import MDMPipeline

    def read(args: argparse.Namespace) -> Any:
        return convert_apple_checkpoint(path, args.config_path or checkpoint.config_path, args.level)

    card = fetched_card(checkpoint, source, checksum, args.text_encoder, args.level)
    convert_to_folder(args, read, MDMPipeline, UNUSED_FILE, {"README.md": card})
