# SPDX-License-Identifier: Apache-2.0
r"""Evaluate the images that a model generates: Fréchet distance, KID, CLIP score and more, at every level.

python training/evaluate.py reference --data_dir training/data/emoji-styles-64 --sides 16 64 \
    --output_dir runs/reference
python training/evaluate.py generate --model_dir model_cards/mdm-emoji-64 \
    --data_dir training/data/emoji-styles-64 --num_captions 400 --output_dir runs/drawn
python training/evaluate.py score --drawings runs/drawn --reference runs/reference --output scores.json
"""

PARSES_FIRST = True  # see diffusers_mdm/__init__.py

from diffusers_mdm.training.commands.evaluation.flags import parse_arguments
from diffusers_mdm.training.commands.messages import mistakes_in_one_line


def main() -> None:
    """Run the command; user errors end the program with one line that says what to do."""
    args = parse_arguments(__doc__ or "")
    with mistakes_in_one_line():
        from diffusers_mdm.training.commands.evaluation.verbs import run_verb

        run_verb(args)


if __name__ == "__main__":
    main()
