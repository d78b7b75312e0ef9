# SPDX-License-Identifier: Apache-2.0
"""Snapshots of the power-function averages, in 16 bits, of which `reconstruction` makes averages of any width.

A folder `ema_snapshots/snapshot-<total steps>` has

- `<module>-<width>.safetensors`: the averaged weights by parameter name,
- `snapshot.json`: steps, number of updates, and when the averaging of each parameter began,
- `manifest.json`: sizes and checksums of these.
"""

import json
import logging
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from ..complete_folders import complete_folder, damage, remove
from ..run import Run
from .run_averages import counts, read_counts, whole_power_averages

logger = logging.getLogger(__name__)

FOLDER = "ema_snapshots"
SNAPSHOT_FILE = "snapshot.json"
_PREFIX, _SET_ASIDE = "snapshot-", "set-aside-"
_NAME = re.compile(rf"{_PREFIX}(0|[1-9][0-9]*)")


@dataclass(frozen=True)
class Snapshot:
    """A snapshot that can be read.

    Attributes:
        folder: its folder.
        step: number of optimizer steps of the run.
        sigma_rels: the widths of its averages.
        counts: by module, the number of updates and when the averaging of each parameter began.
    """

    folder: Path
    step: int
    sigma_rels: tuple[float, ...]
    counts: dict[str, Any]

    def file(self, module: str, sigma_rel: float) -> Path:
        """Return the file of the averages of a module."""
        return self.folder / file_name(module, sigma_rel)


def file_name(module: str, sigma_rel: float) -> str:
    """Return the name of the file of the averages of a module."""
    return f"{module}-{sigma_rel!r}.safetensors"


def save_snapshot(run: Run) -> Path:
    """Write a snapshot of the averages as they are, and remove old ones beyond the limit; every process must call
    this, and the main one writes.

    Raises:
        OSError, SafetensorError: it cannot be written; older ones are untouched.
    """
    recipe, step = run.recipe.post_hoc_ema, run.progress.total_steps
    assert recipe is not None
    parent = run.options.output_dir / FOLDER
    final = parent / f"{_PREFIX}{step}"
    averages = whole_power_averages(run)
    if not run.accelerator.is_main_process:
        return final
    with complete_folder(final) as folder:
        for module, by_width in averages.items():
            for width, shadows in by_width.items():
                halved = {name: in_16_bits(value) for name, value in shadows.items()}
                save_file(halved, folder / file_name(module, width))
        report = {"step": step, "sigma_rels": list(recipe.sigma_rels), "counts": counts(run)}
        (folder / SNAPSHOT_FILE).write_text(json.dumps(report), encoding="utf-8")
    if recipe.snapshots_total_limit is not None:
        kept = set(steps_to_keep(list(snapshot_folders(parent)), recipe.snapshot_steps, recipe.snapshots_total_limit))
        for old_step, old in snapshot_folders(parent).items():
            if old_step not in kept:
                remove(old)
    return final


def in_16_bits(value: torch.Tensor) -> torch.Tensor:
    """Return a tensor in float16, or in bfloat16 if it has values that are too large for float16."""
    half = value.to(torch.float16)
    return half if bool(torch.isfinite(half).all()) else value.to(torch.bfloat16)


def steps_to_keep(steps: list[int], every: int, limit: int) -> list[int]:
    """Return at most `limit` of the steps, spread over training: all if they are few enough, otherwise the newest and
    the multiples of the smallest of `every`, 2 `every`, 4 `every` … that are.
    """
    kept, newest, spacing = sorted(steps), max(steps), every
    while len(kept) > limit:
        kept = [step for step in sorted(steps) if step % spacing == 0 or step == newest]
        spacing *= 2
    return kept


def snapshot_folders(parent: Path) -> dict[int, Path]:
    """Return the folders with the name of a snapshot by their step, lowest first."""
    found = {int(match[1]): path for path in parent.glob(f"{_PREFIX}*") if (match := _NAME.fullmatch(path.name))}
    return {step: found[step] for step in sorted(found)}


def set_aside_newer_snapshots(output_dir: Path, step: int) -> None:
    """Rename all snapshots after `step`, since a run that continues from there will use their names."""
    for number, path in snapshot_folders(output_dir / FOLDER).items():
        if number <= step:
            continue
        target, copies = path.with_name(f"{_SET_ASIDE}{path.name}"), 1
        while os.path.lexists(target):
            copies += 1
            target = path.with_name(f"{_SET_ASIDE}{path.name}-{copies}")
        os.rename(path, target)
        logger.warning("Continuing from step %d: %s set aside, as %s.", step, path, target.name)


def read_snapshots(output_dir: Path) -> list[Snapshot]:
    """Return the snapshots of a run, oldest first; damaged ones are skipped with a message.

    Raises:
        ValueError: one cannot be read, though it is intact.
    """
    found = []
    for step, folder in snapshot_folders(output_dir / FOLDER).items():
        if (problem := damage(folder)) is not None:
            logger.warning("Skipping %s, which is damaged: %s.", folder, problem)
            continue
        file = folder / SNAPSHOT_FILE
        report = json.loads(file.read_text(encoding="utf-8"))
        try:
            widths = tuple(float(width) for width in report["sigma_rels"])
            found.append(Snapshot(folder, step, widths, read_counts(report["counts"], str(file))))
        except (KeyError, TypeError) as error:
            raise ValueError(f"{file} has another structure than expected: {error!r}.") from error
    return found
