# SPDX-License-Identifier: Apache-2.0
r"""Encode all captions of a data set once, so that training needs no text encoder in memory.

    python training/precompute_text_embeddings.py --recipe training/recipes/cc12m_64.yaml --embeddings_dir features
    accelerate launch training/train_text_to_image_mdm.py --recipe training/recipes/cc12m_64.yaml \
        --embeddings_dir features --output_dir my-model

The same as `diffusers-mdm precompute`.
"""

PARSES_FIRST = True  # see diffusers_mdm/__init__.py

import sys
from collections.abc import Sequence

from diffusers_mdm.cli.training import precompute
from diffusers_mdm.command_parsing import mistakes_in_one_line


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command; user errors end the program with one line that says what to do."""
    with mistakes_in_one_line():
        precompute.run(f"python {sys.argv[0]}", sys.argv[1:] if argv is None else argv)


if __name__ == "__main__":
    main()
