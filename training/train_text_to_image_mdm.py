# SPDX-License-Identifier: Apache-2.0
r"""Train a Matryoshka diffusion model on captioned images, stage by stage from the inside out, or fine-tune one.

    accelerate launch training/train_text_to_image_mdm.py --recipe training/recipes/tiny.yaml --output_dir tiny-model
    accelerate launch training/train_text_to_image_mdm.py --pretrained_model_name_or_path tiny-model \
        --train_data_dir pictures --max_train_steps 1000 --output_dir my-model

Repeating the command resumes from its newest checkpoint.
"""

PARSES_FIRST = True  # see diffusers_mdm/__init__.py

from diffusers_mdm.training.commands.run_command import TEXT_TO_IMAGE, run_command


def main() -> None:
    """Run the command with the arguments of the command line."""
    run_command(TEXT_TO_IMAGE)


if __name__ == "__main__":
    main()
