# SPDX-License-Identifier: Apache-2.0
"""The state of a training run: options, modules, averages, optimizer and progress."""

import contextlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from diffusers import AutoencoderKL
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ...models.nested_unet import NestedUNetModel
from ...pipelines.drawing.latent_space import scale_factor
from ...pipelines.drawing.request import BUCKETS
from ...pipelines.pipeline_mdm_unconditional import MDMUnconditionalPipeline
from ...schedulers.scheduling_matryoshka import MatryoshkaScheduler
from ..modules.classes import TrainedPipeline, pipeline_class
from ..modules.conditioned_unet import CaptionTokens
from ..optimizers.registry import family_of
from ..precision import frozen_dtype
from ..recipe.buckets import level_buckets
from ..recipe.recipe import Precision, Recipe
from .history import History
from .moving_average import Average
from .post_hoc.power_averages import PowerAverages
from .progress import Progress
from .resuming import Start

if TYPE_CHECKING:
    from ..extra_losses.extra_loss import ExtraLoss


@dataclass(frozen=True)
class RunOptions:
    """The options of a run: where and how to run a recipe."""

    output_dir: Path
    seed: int = 0
    mixed_precision: Precision | None = None  # None: the recipe's
    report_to: str | None = "tensorboard"
    tracker_project_name: str = "text2image-mdm"
    logging_dir: str = "logs"  # inside output_dir
    logging_steps: int = 50
    checkpointing_steps: int = 500
    checkpoints_total_limit: int | None = 2  # None: keep all
    validation_steps: int | None = None  # None: at every checkpoint
    max_train_steps: int | None = None  # maximum steps of every stage; None: as in the recipe
    resume_from_checkpoint: str = "latest"  # "latest", "none", or a checkpoint's name or folder
    dataloader_num_workers: int = 0
    max_skipped_steps: int = 20  # number of consecutive steps with non-finite gradients after which the run ends
    gradient_checkpointing: bool = False  # of all levels
    gradient_checkpointing_levels: tuple[int, ...] | None = None  # of these levels alone
    torch_compile: bool = False
    attention_backend: str | None = None  # one of diffusers' attention backends; None: its default
    allow_tf32: bool = False
    offload: bool = False  # keep the frozen text encoder and autoencoder in CPU memory while they are not used
    skip_final_inference: bool = False  # generate no samples at the end of a stage that is no validation step
    offload_ema: bool = False  # keep the averages in CPU memory
    foreach_ema: bool = True
    save_dtype: str = "fp32"
    cache_dir: str | None = None
    pre_compute_text_embeddings: bool = False  # encode all captions first, into the recipe's `data.embeddings_dir`
    push_to_hub: bool = False
    hub_model_id: str | None = None
    hub_token: str | None = None
    hub_private_repo: bool = False
    license: str | None = None  # licence of the result for its model card, as the Hub abbreviates it
    resume_command: str = "the same command"  # the command that resumes the run, for messages

    def checkpointed_levels(self, num_levels: int) -> tuple[int, ...]:
        """Return which of the inner `num_levels` levels recompute their activations in the backward pass."""
        if self.gradient_checkpointing_levels is not None:
            return tuple(level for level in self.gradient_checkpointing_levels if level < num_levels)
        return tuple(range(num_levels)) if self.gradient_checkpointing else ()


@dataclass
class Run:
    """Everything that changes during training, with the recipe and options.

    Each part has one owner. `loop/start.py` creates the run, and `load_checkpoint` replaces its contents when it
    resumes; after that, modules, scheduler and optimizer are changed only by `loop/stage_setup.py`, averages only by
    `averages.py`, and `progress` by its own methods.

    `unet` and `text_encoder` are the original modules. Between `begin_stage` and `end_stage` their parameters are
    those of `model`, the module prepared by accelerate; with FSDP these are this process's shards.
    """

    recipe: Recipe
    options: RunOptions
    accelerator: Accelerator
    unet: NestedUNetModel
    text_encoder: PreTrainedModel | None
    tokenizer: PreTrainedTokenizerBase | None
    scheduler: MatryoshkaScheduler
    vae: AutoencoderKL | None = None  # frozen autoencoder, for models on latents
    shift_power: float = 1.0  # for stages that do not set their own
    id2label: dict[int, str] = field(default_factory=dict)  # class names, for class-conditional models
    extra_losses: "dict[str, ExtraLoss]" = field(default_factory=dict)  # of all stages, by name
    stage_losses: "dict[str, ExtraLoss]" = field(default_factory=dict)  # those of the current stage
    drawing_defaults: dict[str, Any] | None = None  # from the pipeline that the run starts from
    progress: Progress = field(default_factory=Progress)
    start: Start | None = None  # the checkpoint from which the run resumes
    history: History | None = None
    ema: dict[str, Average] = field(default_factory=dict)  # of each trained module
    power_averages: dict[str, PowerAverages] = field(default_factory=dict)  # of each trained module, if asked for
    model: torch.nn.Module | None = None  # prepared `ConditionedUNet`
    optimizer: Any = None  # accelerate's wrapper of the torch optimizer
    optimizer_state: dict[str, torch.Tensor] | None = None  # whole tensors by name, between stages and after loading

    @property
    def trained_modules(self) -> dict[str, torch.nn.Module]:
        """The trained modules."""
        modules: dict[str, torch.nn.Module] = {}
        if self.recipe.trains_text_encoder and self.text_encoder is not None:
            modules["text_encoder"] = self.text_encoder
        modules["unet"] = self.unet
        return modules

    def averaged_parameters(self, module: str) -> dict[str, torch.nn.Parameter]:
        """Return the parameters of a trained module that have averages: all, or only the adapters if only these are
        trained.
        """
        parameters = self.trained_modules[module].named_parameters()
        return {name: value for name, value in parameters if self.recipe.lora is None or ".lora_" in name}

    @property
    def extra_modules(self) -> dict[str, torch.nn.Module]:
        """The layers that extra losses train, by the names of the losses; they are no part of the result."""
        return {name: loss.trained for name, loss in self.extra_losses.items() if loss.trained is not None}

    @contextlib.contextmanager
    def at_hand(self, *modules: torch.nn.Module | None) -> Iterator[None]:
        """Keep frozen modules on the run's device inside the block; with the option `offload` they are in CPU memory
        otherwise.
        """
        moved = [module for module in modules if module is not None] if self.options.offload else []
        for module in moved:
            torch.nn.Module.to(module, device=self.accelerator.device)
        try:
            yield
        finally:
            for module in moved:
                torch.nn.Module.to(module, device="cpu")

    @property
    def frozen_modules(self) -> list[torch.nn.Module]:
        """The text encoder, unless it is trained, and the autoencoder; those that there are."""
        encoder = None if "text_encoder" in self.trained_modules else self.text_encoder
        return [module for module in (encoder, self.vae) if module is not None]

    @property
    def is_sharded(self) -> bool:
        """Whether parameters are sharded over processes (FSDP)."""
        return bool(self.accelerator.distributed_type == DistributedType.FSDP)

    @cached_property
    def caption_tokens(self) -> CaptionTokens:
        """The tokens of captions for a frozen text encoder, each tokenised once."""
        return CaptionTokens(cast(PreTrainedTokenizerBase, self.tokenizer), self.recipe.max_sequence_length)

    @cached_property
    def memory_format(self) -> torch.memory_format:
        """The memory format of images and convolutions on the run's device."""
        if family_of(self.recipe.optimizer).only_contiguous:
            return torch.contiguous_format
        return memory_format_on(self.accelerator.device.type, self.recipe.channels_last)

    @property
    def weight_dtype(self) -> torch.dtype:
        """The dtype of frozen modules."""
        return frozen_dtype(cast(str, self.accelerator.mixed_precision))

    def pipeline(self) -> TrainedPipeline:
        """Return a pipeline with the run's current modules (shared, not copied), and with class names if there are
        any.
        """
        cls = pipeline_class(self.recipe)
        more: dict[str, Any] = {"id2label": self.id2label} if self.id2label else {}
        if not issubclass(cls, MDMUnconditionalPipeline):
            more |= {"text_encoder": self.text_encoder, "tokenizer": self.tokenizer}
        if self.recipe.super_resolution is not None:
            more |= asdict(self.recipe.super_resolution)
        return cast(Any, cls)(
            unet=self.unet, scheduler=self.scheduler, vae=self.vae, drawing_defaults=self._defaults(), **more
        )

    def _defaults(self) -> dict[str, Any] | None:
        """Return the default settings of the pipeline, with the sizes of its outermost level besides squares."""
        defaults = dict(self.drawing_defaults or {})
        if self.recipe.vae is None or self.vae is not None:
            sizes = level_buckets(self.recipe, self.unet.num_levels, scale_factor(self.vae))
            # Without buckets, those of the pipeline that the run starts from are kept.
            defaults |= {BUCKETS: [list(size) for size in sizes]} if sizes else {}
        return defaults or None


def memory_format_on(device_type: str, channels_last: bool | None) -> torch.memory_format:
    """Return the memory format of images and convolutions on a device of this type, such as "cpu" or "cuda".

    Without a choice (None) it is channels_last on CPUs, where convolutions are then faster. On NVIDIA GPUs PyTorch's
    group norm copies such images first, which takes longer than the convolutions save.
    """
    is_last = device_type == "cpu" if channels_last is None else channels_last
    return torch.channels_last if is_last else torch.contiguous_format
