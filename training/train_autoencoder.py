# SPDX-License-Identifier: Apache-2.0
"""Train a small AutoencoderKL on images, for a model on latents.

    python training/train_autoencoder.py --train_data_dir my-images --resolution 64 --output_dir my-autoencoder

The same as `diffusers-mdm train autoencoder`.
"""

PARSES_FIRST = True  # see diffusers_mdm/__init__.py

import sys
from collections.abc import Sequence

from diffusers_mdm.cli.training import autoencoder
from diffusers_mdm.command_parsing import mistakes_in_one_line


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command; user errors end the program with one line that says what to do."""
    with mistakes_in_one_line():
        autoencoder.run(f"python {sys.argv[0]}", sys.argv[1:] if argv is None else argv)


if __name__ == "__main__":
    main()
