# SPDX-License-Identifier: Apache-2.0
"""What a training run holds while it runs: options of the command, models, averages, optimizer, and how far it is."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from diffusers import AutoencoderKL
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ...models.nested_unet import NestedUNetModel
from ...schedulers.scheduling_matryoshka import MatryoshkaScheduler
from ..modules.classes import TrainedPipeline, pipeline_class
from ..precision import frozen_dtype
from ..recipe.recipe import Precision, Recipe
from .history import History
from .moving_average import Average
from .progress import Progress
from .resuming import Start


@dataclass(frozen=True)
class RunOptions:
    """The command's flags: where and how to run what the recipe describes."""

    output_dir: Path
    seed: int = 0
    mixed_precision: Precision | None = None  # None: the recipe's
    report_to: str | None = "tensorboard"
    tracker_project_name: str = "text2image-mdm"
    logging_dir: str = "logs"  # inside output_dir
    logging_steps: int = 50
    checkpointing_steps: int = 500
    checkpoints_total_limit: int | None = 2  # None keeps all
    validation_steps: int | None = None  # None: at every checkpoint
    max_train_steps: int | None = None  # upper limit of every stage's steps; None: the recipe's
    resume_from_checkpoint: str = "latest"  # "latest", "none", or a checkpoint's name or folder
    dataloader_num_workers: int = 0
    max_skipped_steps: int = 20  # steps in a row with non-finite gradients before the run stops
    gradient_checkpointing: bool = False
    torch_compile: bool = False
    attention_backend: str | None = None  # one of diffusers' attention backends; None: its default
    allow_tf32: bool = False
    offload_ema: bool = False  # keep the averages in CPU memory
    foreach_ema: bool = True
    save_dtype: str = "fp32"
    cache_dir: str | None = None
    pre_compute_text_embeddings: bool = False  # encode all captions first, into the recipe's `data.embeddings_dir`
    push_to_hub: bool = False
    hub_model_id: str | None = None
    hub_token: str | None = None
    hub_private_repo: bool = False
    license: str | None = None  # of the result, for its model card, as the Hub abbreviates it
    resume_command: str = "the same command"  # what to type to go on, for messages


@dataclass
class Run:
    """Everything that changes during training, and what it is trained with.

    Each part has one owner. `loop/start.py` makes the run, and the checkpoint that it goes on from replaces what it
    holds (`load_checkpoint`); from then on modules, scheduler and optimizer change in `loop/stage_setup.py` alone,
    averages in `averages.py`, and `progress` counts for itself.

    `unet` and `text_encoder` are the plain modules. Between `begin_stage` and `end_stage` their parameters are those
    that `model`, the module as accelerate prepared it, trains; under FSDP these are this process' shards.
    """

    recipe: Recipe
    options: RunOptions
    accelerator: Accelerator
    unet: NestedUNetModel
    text_encoder: PreTrainedModel | None
    tokenizer: PreTrainedTokenizerBase | None
    scheduler: MatryoshkaScheduler
    vae: AutoencoderKL | None = None  # frozen, of a model of latents
    shift_power: float = 1.0  # of stages that do not set their own
    id2label: dict[int, str] = field(default_factory=dict)  # names of the classes, for models that have them
    drawing_defaults: dict[str, Any] | None = None  # of the pipeline that the run starts from
    progress: Progress = field(default_factory=Progress)
    start: Start | None = None  # the checkpoint that this process goes on from
    history: History | None = None
    ema: dict[str, Average] = field(default_factory=dict)  # of each trained module
    model: torch.nn.Module | None = None  # prepared `ConditionedUNet`
    optimizer: Any = None  # accelerate's wrapper of a torch optimizer
    optimizer_state: dict[str, torch.Tensor] | None = None  # whole tensors by name, between stages and after loading

    @property
    def trained_modules(self) -> dict[str, torch.nn.Module]:
        """The modules that training changes."""
        modules: dict[str, torch.nn.Module] = {}
        if self.recipe.trains_text_encoder and self.text_encoder is not None:
            modules["text_encoder"] = self.text_encoder
        modules["unet"] = self.unet
        return modules

    def averaged_parameters(self, module: str) -> dict[str, torch.nn.Parameter]:
        """The parameters of a trained module that have averages: all, or the adapters where only they are trained."""
        parameters = self.trained_modules[module].named_parameters()
        return {name: value for name, value in parameters if self.recipe.lora is None or ".lora_" in name}

    @property
    def is_sharded(self) -> bool:
        """Whether each process holds only a part of every parameter (FSDP)."""
        return bool(self.accelerator.distributed_type == DistributedType.FSDP)

    @property
    def weight_dtype(self) -> torch.dtype:
        """The dtype of modules that are not trained."""
        return frozen_dtype(cast(str, self.accelerator.mixed_precision))

    def pipeline(self) -> TrainedPipeline:
        """The pipeline made of the run's current modules (shared, not copied); for a model of classes with names."""
        names = {"id2label": self.id2label} if self.id2label else {}
        return pipeline_class(self.recipe)(
            text_encoder=self.text_encoder,
            tokenizer=self.tokenizer,
            unet=self.unet,
            scheduler=self.scheduler,
            vae=self.vae,
            drawing_defaults=self.drawing_defaults,
            **cast(Any, names),
        )
