# SPDX-License-Identifier: Apache-2.0
r"""Train a Matryoshka diffusion model on captioned clips, from images to clips and from the inside out.

    accelerate launch training/train_text_to_video_mdm.py --recipe training/recipes/tiny_video.yaml \
        --output_dir tiny-video
    accelerate launch training/train_text_to_video_mdm.py --pretrained_model_name_or_path tiny-video \
        --train_data_dir clips --max_train_steps 1000 --output_dir my-video
    accelerate launch training/train_text_to_video_mdm.py --pretrained_model_name_or_path my-image-model \
        --num_frames 16 --train_data_dir clips --joint_images 8 --max_train_steps 1000 --output_dir my-video

Repeating the command resumes from its newest checkpoint.
"""

PARSES_FIRST = True  # see diffusers_mdm/__init__.py

from diffusers_mdm.training.commands.run_command import TEXT_TO_VIDEO, run_command


def main() -> None:
    """Run the command with the arguments of the command line."""
    run_command(TEXT_TO_VIDEO)


if __name__ == "__main__":
    main()
