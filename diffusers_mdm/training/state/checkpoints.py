# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of a run: everything that is needed to continue exactly, in safetensors and JSON.

A folder `checkpoint-<total steps>` has

- `unet/`, `text_encoder/`, `tokenizer/` in the format of `save_pretrained`; for LoRA the adapter's weights instead,
- `optimizer.safetensors`: whole tensors, "<parameter>//<entry>",
- `extra_losses.safetensors`: the layers that extra losses train, if there are any,
- `unet_ema/`, `text_encoder_ema/`: the averaged weights, see `average_files`,
- `power_averages.safetensors`, `power_averages.json`: see `post_hoc/run_averages`, if the recipe has `post_hoc_ema`,
- `progress.json`: counters, plateau, counters of the averages, fp16 scaler, the recipe,
- `history.jsonl`: the history of the run up to here,
- `manifest.json`: sizes and checksums of all of these.
"""

import dataclasses
import json
import logging
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from ...models.nested_unet import NestedUNetModel
from ..modules.growth import grow_model
from ..modules.lora import load_lora, save_lora
from ..modules.saved_configs import forget_last_call, forget_origin
from ..optimizers.registry import family_of
from .average_files import load_averages, save_averages
from .averages import whole_averages
from .checkpoint_folders import PREFIX, PROGRESS_FILE, make_room
from .checkpoint_report import CheckpointReport
from .complete_folders import complete_folder
from .history import FILE_NAME as HISTORY_FILE
from .optimizer import optimizer_state_of
from .post_hoc.run_averages import load_power_averages, save_power_averages, whole_power_averages
from .run import Run
from .sharding import plain_copy

logger = logging.getLogger(__name__)

OPTIMIZER_FILE = "optimizer.safetensors"
EXTRA_LOSSES_FILE = "extra_losses.safetensors"
WRITE_ERRORS = (OSError, SafetensorError)


def save_checkpoint(run: Run) -> Path:
    """Write `output_dir/checkpoint-<total steps>`; every process must call this, and the main one writes.

    Old checkpoints beyond `checkpoints_total_limit` are removed after the new one is complete.

    Raises:
        OSError, SafetensorError: if it cannot be written; older checkpoints are untouched.
    """
    final = run.options.output_dir / f"{PREFIX}{run.progress.total_steps}"
    optimizer = run.optimizer_state
    if run.optimizer is not None:
        optimizer = optimizer_state_of(run)
    averages, power_averages = whole_averages(run), whole_power_averages(run)
    modules = {name: plain_copy(module) if run.is_sharded else module for name, module in run.trained_modules.items()}
    if not run.accelerator.is_main_process:
        return final
    with complete_folder(final) as folder:
        save_modules(run, modules, folder)
        save_file(optimizer or {}, folder / OPTIMIZER_FILE)
        save_averages(run, modules, averages, folder)
        save_power_averages(run, power_averages, folder)
        if run.extra_modules:
            save_file(torch.nn.ModuleDict(run.extra_modules).state_dict(), folder / EXTRA_LOSSES_FILE)
        (folder / PROGRESS_FILE).write_text(json.dumps(progress_report(run), indent=2), encoding="utf-8")
        if run.history is not None and run.history.path.exists():
            shutil.copyfile(run.history.path, folder / HISTORY_FILE)
    source = None if run.start is None else run.start.checkpoint
    make_room(run.options.output_dir, run.options.checkpoints_total_limit, source)
    return final


def save_modules(run: Run, modules: dict[str, Any], folder: Path) -> None:
    """Write the trained modules, which are not sharded, with `save_pretrained`; for LoRA only the adapter's
    weights.
    """
    if run.recipe.lora is not None:
        save_lora(modules["unet"], folder)
    else:
        forget_origin(modules["unet"])
        modules["unet"].save_pretrained(folder / "unet")
    if "text_encoder" in modules and run.tokenizer is not None:
        forget_origin(modules["text_encoder"])
        modules["text_encoder"].save_pretrained(folder / "text_encoder")
        forget_last_call(run.tokenizer)
        run.tokenizer.save_pretrained(folder / "tokenizer")


def progress_report(run: Run) -> dict[str, Any]:
    """Return everything of a run that is not a tensor."""
    scaler = run.accelerator.scaler
    return {
        "progress": dataclasses.asdict(run.progress),
        "averages": {name: average.steps for name, average in run.ema.items()},
        "scaler": None if scaler is None else scaler.state_dict(),
        "num_levels": run.unet.num_levels,
        "recipe": dataclasses.asdict(run.recipe),
        "seed": run.options.seed,
    }


def load_checkpoint(run: Run, checkpoint: Path, report: CheckpointReport) -> None:
    """Load the state of `checkpoint` into `run`; optimizer and averages are set up when the stage begins.

    Args:
        run: a run that has just started, with the modules of its recipe.
        checkpoint: an intact checkpoint of the run's recipe.
        report: the result of `read_report` for it.

    Raises:
        ValueError: the files of the checkpoint do not belong together.
    """
    if run.recipe.lora is not None:
        while run.unet.num_levels < report.num_levels:
            run.unet = grow_model(run.unet, run.recipe.level_configs[run.unet.num_levels])
        load_lora(run.unet, checkpoint)
    else:
        run.unet = NestedUNetModel.from_pretrained(checkpoint / "unet")
    if "text_encoder" in run.trained_modules:
        run.text_encoder = type(run.trained_modules["text_encoder"]).from_pretrained(checkpoint / "text_encoder")  # type: ignore[attr-defined]
        run.tokenizer = AutoTokenizer.from_pretrained(checkpoint / "tokenizer")
    load_averages(run, checkpoint, report)
    load_power_averages(run, checkpoint)
    load_extra_losses(run, checkpoint)
    run.optimizer_state = load_file(checkpoint / OPTIMIZER_FILE)
    check_optimizer_state(run, checkpoint)
    if report.scaler and run.accelerator.scaler is not None:
        run.accelerator.scaler.load_state_dict(report.scaler)
    run.progress = report.progress
    if run.history is not None:
        run.history.restore(checkpoint / HISTORY_FILE, run.progress.total_steps)


def load_extra_losses(run: Run, checkpoint: Path) -> None:
    """Load the layers of the run's extra losses; those that the checkpoint does not have remain new.

    Raises:
        ValueError: they do not fit.
    """
    file = checkpoint / EXTRA_LOSSES_FILE
    saved = load_file(file) if file.is_file() else {}
    for name, module in run.extra_modules.items():
        prefix = f"{name}."
        state = {key.removeprefix(prefix): value for key, value in saved.items() if key.startswith(prefix)}
        try:
            if state:
                module.load_state_dict(state)
        except RuntimeError as error:
            raise ValueError(f"{file} does not fit the recipe's `{name}`: {error}") from error


def check_optimizer_state(run: Run, checkpoint: Path) -> None:
    """Check that the optimizer state of a checkpoint fits the run's parameters. What it has for extra losses that the
    run no longer has is dropped.

    Raises:
        ValueError: names an entry that does not fit.
    """
    extra = {f"extra_losses.{name}": module for name, module in run.extra_modules.items()}
    shapes = {
        f"{module}.{name}": tuple(value.shape)
        for module, part in {**run.trained_modules, **extra}.items()
        for name, value in part.named_parameters()
    }
    family = family_of(run.recipe.optimizer)
    run.optimizer_state = {
        key: value
        for key, value in (run.optimizer_state or {}).items()
        if not key.startswith("extra_losses.") or key.startswith(tuple(f"{name}." for name in extra))
    }
    for key, value in run.optimizer_state.items():
        name, _, entry = key.partition("//")
        if name in shapes:
            allowed = {(), shapes[name], *family.other_shapes(shapes[name])}
        else:
            allowed = {()} if not name and entry in family.shared else set()
        if not entry or tuple(value.shape) not in allowed:
            raise ValueError(f"{checkpoint / OPTIMIZER_FILE} does not fit the weights beside it: {key} differs.")
