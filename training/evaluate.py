# SPDX-License-Identifier: Apache-2.0
r"""Evaluate the images that a model generates: Fréchet distance, KID, CLIP score and more, at every level.

python training/evaluate.py reference --data_dir training/data/emoji-styles-64 --sides 16 64 \
    --output_dir runs/reference
python training/evaluate.py generate --model_dir model_cards/mdm-emoji-64 \
    --data_dir training/data/emoji-styles-64 --num_captions 400 --output_dir runs/drawn
python training/evaluate.py score --drawings runs/drawn --reference runs/reference --output scores.json

The same as `diffusers-mdm evaluate`.
"""

PARSES_FIRST = True  # see diffusers_mdm/__init__.py

import sys

from diffusers_mdm.cli import evaluate
from diffusers_mdm.command_parsing import mistakes_in_one_line


def main() -> None:
    """Run the command; user errors end the program with one line that says what to do."""
    with mistakes_in_one_line():
        evaluate.run(f"python {sys.argv[0]}", sys.argv[1:])


if __name__ == "__main__":
    main()
