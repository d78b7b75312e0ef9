# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of a run: all that is needed to go on as if nothing had happened, in safetensors and JSON.

A folder `checkpoint-<total steps>` has

- `unet/`, `text_encoder/`, `tokenizer/` as `save_pretrained` writes them; with LoRA the adapter's weights instead,
- `optimizer.safetensors`: whole tensors, "<parameter>//<entry>",
- `ema.safetensors`: whole tensors, "<module>//<parameter>",
- `progress.json`: counters, plateau, counters of the averages, fp16 scaler, the recipe,
- `manifest.json`: sizes and checksums of all of these.
"""

import dataclasses
import json
import logging
import shutil
from pathlib import Path
from typing import Any

import torch
from diffusers.training_utils import EMAModel
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from ...models.nested_unet import NestedUNetModel
from ..loop.stage_setup import trained_parameters
from ..modules.growth import grow_model
from ..modules.lora import load_lora, save_lora
from ..modules.saved_configs import forget_origin
from .averages import averaged_names, whole_averages
from .complete_folders import complete_folder, damage, remove_unfinished
from .optimizer import whole_optimizer_state
from .run import Progress, Run
from .sharding import plain_copy

logger = logging.getLogger(__name__)

PREFIX = "checkpoint-"
PROGRESS_FILE = "progress.json"
OPTIMIZER_FILE = "optimizer.safetensors"
EMA_FILE = "ema.safetensors"
WRITE_ERRORS = (OSError, SafetensorError)
# Fields of the recipe that a resumed run may not change: they say what the saved tensors are and mean.
FIXED_FIELDS = ("model", "levels", "text_encoder", "vae", "lora", "use_ema")


def save_checkpoint(run: Run) -> Path:
    """Write `output_dir/checkpoint-<total steps>`; every process has to ask, the main one writes.

    Oldest checkpoints beyond `checkpoints_total_limit` are removed after the new one is complete.

    Raises:
        OSError, SafetensorError: if it cannot be written; older checkpoints are untouched.
    """
    final = run.options.output_dir / f"{PREFIX}{run.progress.total_steps}"
    optimizer = run.optimizer_state
    if run.optimizer is not None:
        optimizer = whole_optimizer_state(run.optimizer.optimizer, trained_parameters(run))
    averages = whole_averages(run)
    modules = {name: plain_copy(module) if run.is_sharded else module for name, module in run.trained_modules.items()}
    if not run.accelerator.is_main_process:
        return final
    with complete_folder(final) as folder:
        save_modules(run, modules, folder)
        save_file(optimizer or {}, folder / OPTIMIZER_FILE)
        save_file(named_averages(run, averages), folder / EMA_FILE)
        (folder / PROGRESS_FILE).write_text(json.dumps(progress_report(run), indent=2), encoding="utf-8")
    limit = run.options.checkpoints_total_limit
    if limit is not None:
        for old in list_checkpoints(run.options.output_dir)[:-limit]:
            shutil.rmtree(old)
    return final


def save_modules(run: Run, modules: dict[str, Any], folder: Path) -> None:
    """Write the trained modules, which are whole, as `save_pretrained` does; of LoRA the adapter's weights alone."""
    if run.recipe.lora is not None:
        save_lora(modules["unet"], folder)
    else:
        forget_origin(modules["unet"])
        modules["unet"].save_pretrained(folder / "unet")
    if "text_encoder" in modules and run.tokenizer is not None:
        forget_origin(modules["text_encoder"])
        modules["text_encoder"].save_pretrained(folder / "text_encoder")
        run.tokenizer.save_pretrained(folder / "tokenizer")


def named_averages(run: Run, averages: dict[str, list[torch.Tensor]]) -> dict[str, torch.Tensor]:
    """The averages by name, each in memory of its own, as the format wants."""
    named: dict[str, torch.Tensor] = {}
    for module, shadows in averages.items():
        names = averaged_names(run, module)
        named |= {f"{module}//{name}": value.clone() for name, value in zip(names, shadows, strict=True)}
    return named


def progress_report(run: Run) -> dict[str, Any]:
    """Everything of a run that is not a tensor."""
    scaler = run.accelerator.scaler
    return {
        "progress": dataclasses.asdict(run.progress),
        "averages": {name: average.optimization_step for name, average in run.ema.items()},
        "scaler": None if scaler is None else scaler.state_dict(),
        "num_levels": run.unet.num_levels,
        "recipe": dataclasses.asdict(run.recipe),
    }


def list_checkpoints(output_dir: Path) -> list[Path]:
    """Folders with a checkpoint's name, oldest first."""
    found = [path for path in output_dir.glob(f"{PREFIX}*") if path.name.removeprefix(PREFIX).isdigit()]
    return sorted(found, key=lambda path: int(path.name.removeprefix(PREFIX)))


def choose_checkpoint(output_dir: Path, wanted: str) -> Path | None:
    """The checkpoint to go on from: the newest sound one for "latest", none for "none", or the one that is named.

    Damaged checkpoints are passed over with a message. A name is looked up in `output_dir`, then as a path.

    Raises:
        ValueError: if the named one does not exist or is damaged.
    """
    if wanted == "none":
        return None
    remove_unfinished(output_dir)
    if wanted == "latest":
        for checkpoint in reversed(list_checkpoints(output_dir)):
            problem = damage(checkpoint)
            if problem is None:
                return checkpoint
            logger.warning("Skipping %s, which is damaged: %s.", checkpoint, problem)
        return None
    for checkpoint in (output_dir / wanted, Path(wanted)):
        if checkpoint.is_dir():
            problem = damage(checkpoint)
            if problem is not None:
                raise ValueError(f"{checkpoint} is damaged ({problem}); resume from another one, or from 'latest'.")
            return checkpoint
    there = ", ".join(path.name for path in list_checkpoints(output_dir)) or "none"
    raise ValueError(f"There is no checkpoint {wanted!r}, in {output_dir} or as a path; checkpoints there: {there}.")


def load_checkpoint(run: Run, checkpoint: Path) -> None:
    """Put the state of `checkpoint` into `run`, between stages; optimizer and averages are laid out when one begins.

    Raises:
        ValueError: if the checkpoint is of a recipe with other tensors.
    """
    report = json.loads((checkpoint / PROGRESS_FILE).read_text(encoding="utf-8"))
    check_recipe(run, report["recipe"], checkpoint)
    if run.recipe.lora is not None:
        while run.unet.num_levels < report["num_levels"]:
            run.unet = grow_model(run.unet, run.recipe.rows[run.unet.num_levels])
        load_lora(run.unet, checkpoint)
    else:
        run.unet = NestedUNetModel.from_pretrained(checkpoint / "unet")
    if "text_encoder" in run.trained_modules:
        run.text_encoder = type(run.trained_modules["text_encoder"]).from_pretrained(checkpoint / "text_encoder")  # type: ignore[attr-defined]
        run.tokenizer = AutoTokenizer.from_pretrained(checkpoint / "tokenizer")
    run.optimizer_state = load_file(checkpoint / OPTIMIZER_FILE)
    averages = load_file(checkpoint / EMA_FILE)
    for module, steps in report["averages"].items():
        average = EMAModel([], use_ema_warmup=True, power=0.75, foreach=run.options.foreach_ema)
        average.optimization_step = steps
        average.shadow_params = [averages[f"{module}//{name}"] for name in averaged_names(run, module)]
        run.ema[module] = average
    if report["scaler"] and run.accelerator.scaler is not None:
        run.accelerator.scaler.load_state_dict(report["scaler"])
    run.progress = Progress(**report["progress"])


def check_recipe(run: Run, saved: dict[str, Any], checkpoint: Path) -> None:
    """Refuse a checkpoint whose tensors are not those of the run's recipe."""
    current = json.loads(json.dumps(dataclasses.asdict(run.recipe)))
    changed = [field for field in FIXED_FIELDS if saved.get(field) != current[field]]
    if changed:
        raise ValueError(
            f"{checkpoint} was trained with another recipe: {', '.join(f'`{field}`' for field in changed)} differ. "
            "Use that recipe again, another --output_dir, or --resume_from_checkpoint none."
        )
