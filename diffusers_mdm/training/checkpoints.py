# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of a run: written beside and then renamed, so that a folder with its final name is complete."""

import dataclasses
import json
import logging
import shutil
from pathlib import Path

import torch
from diffusers.training_utils import EMAModel
from transformers import AutoTokenizer

from ..models.nested_unet import NestedUNetModel
from .run import Progress, Run

logger = logging.getLogger(__name__)

PREFIX = "checkpoint-"
_PROGRESS_FILE = "progress.json"
_STATE_FILE = "training_state.pt"


def save_checkpoint(run: Run) -> Path:
    """Write weights, averaged weights, optimizer and counters to `output_dir/checkpoint-<total steps>`.

    Oldest checkpoints beyond `checkpoints_total_limit` are removed after the new one is complete.
    """
    final = run.options.output_dir / f"{PREFIX}{run.progress.total_steps}"
    beside = run.options.output_dir / f".unfinished-{final.name}"
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    run.unet.save_pretrained(beside / "unet")
    run.text_encoder.save_pretrained(beside / "text_encoder")
    run.tokenizer.save_pretrained(beside / "tokenizer")
    optimizer = run.optimizer.state_dict() if run.optimizer is not None else run.saved_optimizer
    ema = {name: average.state_dict() for name, average in run.ema.items()}
    torch.save({"optimizer": optimizer, "ema": ema}, beside / _STATE_FILE)
    (beside / _PROGRESS_FILE).write_text(json.dumps(dataclasses.asdict(run.progress), indent=2))
    shutil.rmtree(final, ignore_errors=True)
    beside.rename(final)
    for old in list_checkpoints(run.options.output_dir)[: -run.options.checkpoints_total_limit]:
        shutil.rmtree(old)
    return final


def list_checkpoints(output_dir: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    found = [path for path in output_dir.glob(f"{PREFIX}*") if (path / _PROGRESS_FILE).is_file()]
    return sorted(found, key=lambda path: int(path.name.removeprefix(PREFIX)))


def load_checkpoint(run: Run, checkpoint: Path) -> None:
    """Put the state of `checkpoint` into `run`; the optimizer's waits in `saved_optimizer` until the stage begins."""
    run.unet = NestedUNetModel.from_pretrained(checkpoint / "unet")
    run.text_encoder = type(run.text_encoder).from_pretrained(checkpoint / "text_encoder")
    run.tokenizer = AutoTokenizer.from_pretrained(checkpoint / "tokenizer")
    state = torch.load(checkpoint / _STATE_FILE, map_location="cpu", weights_only=True)
    run.saved_optimizer = state["optimizer"]
    for name, saved in state["ema"].items():
        run.ema[name] = EMAModel([], foreach=True)
        run.ema[name].load_state_dict(saved)
    run.progress = Progress(**json.loads((checkpoint / _PROGRESS_FILE).read_text()))
