# SPDX-License-Identifier: Apache-2.0
"""The commands of `diffusers-mdm`. A new one is a line here and a module beside this one or in a folder here."""

from .. import __version__
from .command import Command, CommandGroup

PROGRAM = "diffusers-mdm"

DIFFUSERS_MDM = CommandGroup(
    f"""\
Matryoshka Diffusion Models: generate images, classes and clips, train and evaluate models, convert checkpoints.

  {PROGRAM} generate my-model --prompts "a red fox" "a blue bird" --output_dir drawn
  {PROGRAM} train text-to-image --recipe my-recipe.yaml --output_dir my-model
  {PROGRAM} evaluate samples --model_dir my-model --prompts "a red fox" --output samples.png
  {PROGRAM} convert apple --checkpoint_path vis_model.pth --output_dir mdm-64
""",
    (
        Command("generate", "generate images or clips for prompts or classes", "generate"),
        Command("info", "describe a model: levels, parameters, schedule, sizes, memory", "info"),
        Command("fetch", "download and convert a model that the authors of MDM have published", "fetch"),
        Command("demo", "open a web page on which all levels can be watched", "demo"),
        Command("train", "train or fine-tune a model", "training.train:TRAIN"),
        Command("estimate", "estimate the GPU hours of a recipe", "training.estimate"),
        Command("shards", "write a streamed data set as WebDataset shards", "training.shards"),
        Command("precompute", "encode all captions of a data set once, before training", "training.precompute"),
        Command(
            "reconstruct-ema",
            "save a finished run with averaged weights of another width",
            ".training.commands.average_reconstruction",
        ),
        Command("evaluate", "measure how good a model's images are", "evaluate"),
        Command("convert", "convert checkpoints of other implementations, and back", "convert:CONVERT"),
        Command("completion", "print code for the completion of commands and flags in the shell", "completion"),
    ),
    __version__,
)
