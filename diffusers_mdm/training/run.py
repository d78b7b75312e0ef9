# SPDX-License-Identifier: Apache-2.0
"""What a training run holds while it runs: options of the command, models, averages, optimizer, and how far it is."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..models.nested_unet import NestedUNetModel
from ..pipelines.pipeline_mdm import MDMPipeline
from ..schedulers.scheduling_matryoshka import MatryoshkaScheduler
from .recipe import Precision, Recipe


@dataclass(frozen=True)
class RunOptions:
    """The command's flags: where and how to run what the recipe describes."""

    output_dir: Path
    seed: int = 0
    mixed_precision: Precision | None = None  # None: the recipe's
    report_to: str | None = "tensorboard"
    logging_steps: int = 50
    checkpointing_steps: int = 500
    checkpoints_total_limit: int = 2
    max_train_steps: int | None = None  # upper limit of every stage's steps; None: the recipe's
    resume_from_checkpoint: str = "latest"  # "latest" or "none"
    dataloader_num_workers: int = 0
    max_skipped_steps: int = 20  # steps in a row with non-finite gradients before the run stops
    torch_compile: bool = False
    attention_backend: str | None = None  # one of diffusers' attention backends; None: its default
    save_dtype: str = "fp32"


@dataclass
class Progress:
    """How far a run is, in optimizer steps and in images seen (over all processes)."""

    stage_index: int = 0
    stage_step: int = 0
    total_steps: int = 0
    total_images: int = 0
    skipped_steps: int = 0
    skipped_in_a_row: int = 0


@dataclass
class Run:
    """Everything that changes during training, and what it is trained with."""

    recipe: Recipe
    options: RunOptions
    accelerator: Accelerator
    unet: NestedUNetModel
    text_encoder: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    scheduler: MatryoshkaScheduler
    progress: Progress = field(default_factory=Progress)
    ema: dict[str, EMAModel] = field(default_factory=dict)
    optimizer: torch.optim.Optimizer | None = None
    saved_optimizer: dict[str, Any] | None = None  # state of the optimizer before this stage or restart

    @property
    def trained_modules(self) -> dict[str, torch.nn.Module]:
        """The modules that training changes, in the order of the optimizer's groups."""
        modules: dict[str, torch.nn.Module] = {}
        if self.recipe.text_encoder.train_text_encoder:
            modules["text_encoder"] = self.text_encoder
        modules["unet"] = self.unet
        return modules

    def pipeline(self) -> MDMPipeline:
        """The pipeline made of the run's current modules (shared, not copied)."""
        return MDMPipeline(
            text_encoder=self.text_encoder, tokenizer=self.tokenizer, unet=self.unet, scheduler=self.scheduler
        )
