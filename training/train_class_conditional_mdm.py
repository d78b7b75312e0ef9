# SPDX-License-Identifier: Apache-2.0
r"""Train a Matryoshka diffusion model on images with classes, stage by stage from the inside out.

    accelerate launch training/train_class_conditional_mdm.py --recipe training/recipes/emoji_styles_class.yaml \
        --output_dir styles
    accelerate launch training/train_class_conditional_mdm.py --pretrained_model_name_or_path styles \
        --train_data_dir pictures --label_column label --max_train_steps 1000 --output_dir my-styles

Repeating the command resumes from its newest checkpoint.
"""

PARSES_FIRST = True  # see diffusers_mdm/__init__.py

from diffusers_mdm.training.commands.run_command import CLASS_CONDITIONAL, run_command


def main() -> None:
    """Run the command with the arguments of the command line."""
    run_command(CLASS_CONDITIONAL)


if __name__ == "__main__":
    main()
