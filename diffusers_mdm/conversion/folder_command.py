# SPDX-License-Identifier: Apache-2.0
"""The steps that the commands which write a diffusers folder have in common."""

import argparse
from collections.abc import Callable, Mapping
from typing import Any

from .apple_mdm import ConvertedCheckpoint
from .write_pipeline import DTYPES, assemble_pipeline, check_output_is_new, write_model


def convert_to_folder(
    args: argparse.Namespace,
    read: Callable[[argparse.Namespace], ConvertedCheckpoint],
    pipeline_class: type,
    unused_file: str | None = None,
    texts: Mapping[str, str] | None = None,
) -> None:
    """Read a foreign checkpoint and write the folder that `args` describe, or nothing.

    Args:
        args: the flags of `add_folder_arguments`, and those that `read` uses.
        read: converts the checkpoint in memory.
        pipeline_class: class of the pipeline if there is a text encoder.
        unused_file: name of the file, beside the weights, for tensors that the foreign code never uses; None drops
            them.
        texts: further text files of the folder, such as a model card, by file name.

    Raises:
        ValueError: the folder exists already, or parts do not match.
        OSError: a file is missing, or cannot be read or written.
    """
    check_output_is_new(args.output_dir)  # checked before the slow work
    converted = read(args)
    unet = converted.unet.to(DTYPES[args.dtype]) if args.dtype else converted.unet

    def make_pipeline(unet: Any, scheduler: Any) -> Any:
        return assemble_pipeline(pipeline_class, unet, scheduler, args.text_encoder, unet.dtype)

    write_model(
        args.output_dir,
        unet,
        converted.scheduler,
        {unused_file: converted.unused} if unused_file else None,
        make_pipeline if args.text_encoder else None,
        texts=texts,
    )
