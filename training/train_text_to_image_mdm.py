# SPDX-License-Identifier: Apache-2.0
r"""Train a Matryoshka diffusion model from text-image pairs, stage by stage from the inside out, or fine-tune one.

    accelerate launch training/train_text_to_image_mdm.py --recipe training/recipes/tiny.yaml --output_dir tiny-model
    accelerate launch training/train_text_to_image_mdm.py --pretrained_model_name_or_path tiny-model \
        --train_data_dir pictures --max_train_steps 1000 --output_dir my-model

Repeating the command resumes from its newest checkpoint.
"""

import dataclasses
import logging
import os
import sys

from diffusers_mdm.training.checkpoints import WRITE_ERRORS
from diffusers_mdm.training.command_line import one_line, resume_command
from diffusers_mdm.training.engine import resolve_recipe, run_recipe
from diffusers_mdm.training.flags import num_processes, read_command
from diffusers_mdm.training.interruption import RunInterrupted
from diffusers_mdm.training.summary import describe_run


def main() -> None:
    """Parse, then print or run; what the user can mend ends with one line instead of a traceback."""
    recipe, options, is_dry_run = read_command(sys.argv[1:])
    options = dataclasses.replace(options, resume_command=resume_command(sys.argv[1:]))
    is_main = os.environ.get("RANK", "0") == "0"
    level = logging.INFO if is_main else logging.WARNING
    logging.basicConfig(level=level, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    try:
        if is_dry_run:
            print(describe_run(resolve_recipe(recipe, options), options, num_processes()))
        else:
            run_recipe(recipe, options)
    except RunInterrupted as interruption:
        # The run has been asked to stop, and has saved what it knows: that is a success.
        if is_main:
            print(interruption)
    except (ValueError, FloatingPointError, *WRITE_ERRORS) as error:
        sys.exit(f"{os.path.basename(sys.argv[0])}: error: {one_line(error)}")


if __name__ == "__main__":
    main()
