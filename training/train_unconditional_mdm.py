# SPDX-License-Identifier: Apache-2.0
r"""Train an unconditional Matryoshka diffusion model on images without captions, stage by stage from the inside out.

    accelerate launch training/train_unconditional_mdm.py --recipe training/recipes/emoji_unconditional.yaml \
        --output_dir emoji
    accelerate launch training/train_unconditional_mdm.py --pretrained_model_name_or_path emoji \
        --train_data_dir pictures --max_train_steps 1000 --output_dir my-images

Repeating the command resumes from its newest checkpoint.
"""

PARSES_FIRST = True  # see diffusers_mdm/__init__.py

from diffusers_mdm.training.commands.run_command import UNCONDITIONAL, run_command


def main() -> None:
    """Run the command with the arguments of the command line."""
    run_command(UNCONDITIONAL)


if __name__ == "__main__":
    main()
