# SPDX-License-Identifier: Apache-2.0
"""Train a Matryoshka diffusion model from text-image pairs, stage by stage from the inside out.

    python training/train_text_to_image_mdm.py --recipe training/recipes/tiny.yaml --output_dir tiny-model

Repeating the command resumes from its newest checkpoint.
"""

import argparse
import dataclasses
import logging
import os
from pathlib import Path

from diffusers_mdm.training.engine import SAVE_DTYPES, resolve_recipe, run_recipe
from diffusers_mdm.training.recipe import load_recipe
from diffusers_mdm.training.run import RunOptions
from diffusers_mdm.training.summary import describe_run


def build_parser() -> argparse.ArgumentParser:
    """The command's flags, named as in the training scripts of diffusers."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--recipe", type=Path, required=True, help="YAML file with model, data and stages")
    parser.add_argument("--output_dir", type=Path, required=True, help="checkpoints, samples, logs and the pipeline")
    parser.add_argument("--train_data_dir", help="dataset folder to use instead of the recipe's `data.path`")
    parser.add_argument("--seed", type=int, default=0, help="start of all random streams (default 0)")
    parser.add_argument("--mixed_precision", choices=["no", "fp16", "bf16"], help="instead of the recipe's")
    parser.add_argument("--report_to", default="tensorboard", help='tracker: "tensorboard", "wandb" or "none"')
    parser.add_argument("--logging_steps", type=int, default=50, help="report losses every so many steps")
    parser.add_argument("--checkpointing_steps", type=int, default=500, help="checkpoint every so many steps")
    parser.add_argument("--checkpoints_total_limit", type=int, default=2, help="checkpoints to keep")
    parser.add_argument("--max_train_steps", type=int, help="at most so many steps in every stage")
    parser.add_argument(
        "--resume_from_checkpoint",
        choices=["latest", "none"],
        default="latest",
        help="where to start (default latest)",
    )
    parser.add_argument("--dataloader_num_workers", type=int, default=0, help="processes that read pictures")
    parser.add_argument("--torch_compile", action="store_true", help="compile the U-Net")
    parser.add_argument("--attention_backend", help="of diffusers, such as _native_math, the fastest in bf16 on CPUs")
    parser.add_argument("--save_dtype", choices=sorted(SAVE_DTYPES), default="fp32", help="of the final pipeline")
    parser.add_argument("--dry_run", action="store_true", help="print what would be trained, and stop")
    return parser


def main() -> None:
    """Parse, then print or run."""
    parser = build_parser()
    args = parser.parse_args()
    is_main = os.environ.get("RANK", "0") == "0"
    level = logging.INFO if is_main else logging.WARNING
    logging.basicConfig(level=level, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    try:
        recipe = load_recipe(args.recipe)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    if args.train_data_dir is not None:
        recipe = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, path=args.train_data_dir))
    fields = {field.name for field in dataclasses.fields(RunOptions)}
    options = RunOptions(**{name: value for name, value in vars(args).items() if name in fields})
    if options.report_to == "none":
        options = dataclasses.replace(options, report_to=None)
    if args.dry_run:
        print(describe_run(resolve_recipe(recipe, options)))
    else:
        run_recipe(recipe, options)


if __name__ == "__main__":
    main()
