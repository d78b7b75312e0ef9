# SPDX-License-Identifier: Apache-2.0
"""Making an average of any width from the snapshots of a finished run, and saving its pipeline with it."""

import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from .... import public_names
from ...precision import DTYPES
from ..complete_folders import complete_folder
from ..finished_files import INDEX_FILE
from .profiles import Combination, Profile, combine
from .snapshots import FOLDER, Snapshot, read_snapshots

logger = logging.getLogger(__name__)

LORA_FILE = "pytorch_lora_weights.safetensors"
# Above this, the average is visibly another one than asked for.
LARGE_ERROR = 0.1


class Average(NamedTuple):
    """An average made from snapshots.

    Attributes:
        weights: the averaged weights in float32, by module and parameter name.
        step: the number of optimizer steps at which it is taken.
        num_snapshots: how many snapshots it is made of.
        error: the largest distance of its profile from the wanted one, relative to the norm of that.
    """

    weights: dict[str, dict[str, torch.Tensor]]
    step: int
    num_snapshots: int
    error: float


def reconstruct(snapshots: Sequence[Snapshot], sigma_rel: float, step: int | None = None) -> Average:
    """Return the average of this width at a step.

    Weights whose averaging began later, such as those of a level that was added, have an average of this width
    relative to the training since then; frozen weights have their values.

    Args:
        snapshots: the snapshots of the run.
        sigma_rel: the width.
        step: the step of one of the snapshots; None: the last.

    Raises:
        ValueError: there is no such snapshot or average.
    """
    last = _snapshot_at(snapshots, step)
    used = [snapshot for snapshot in snapshots if snapshot.step <= last.step]
    weights: dict[str, dict[str, torch.Tensor]] = {}
    errors = [0.0]
    for module, counted in last.counts.items():
        with ExitStack() as files:
            opened = {
                (snapshot.step, width): files.enter_context(safe_open(snapshot.file(module, width), framework="pt"))
                for snapshot in used
                if module in snapshot.counts
                for width in snapshot.sigma_rels
            }
            combinations: dict[int, tuple[list[Any], Combination]] = {}
            weights[module] = {}
            for name, since in counted["since"].items():
                if since == counted["updates"]:
                    weights[module][name] = opened[last.step, last.sigma_rels[0]].get_tensor(name).float()
                    continue
                if since not in combinations:
                    kept = list(_kept_since(used, module, name, since))
                    found = combine([profile for *_, profile in kept], Profile(sigma_rel, counted["updates"] - since))
                    combinations[since] = [opened[key] for key, _ in kept], found
                    errors.append(found.error)
                parts, combination = combinations[since]
                # Weights of the sum can be negative and larger than 1, so it is computed in double precision.
                total = sum(
                    float(weight) * part.get_tensor(name).cpu().double()
                    for weight, part in zip(combination.weights, parts, strict=True)
                )
                weights[module][name] = torch.as_tensor(total).float()
    return Average(weights, last.step, len(used), max(errors))


def _snapshot_at(snapshots: Sequence[Snapshot], step: int | None) -> Snapshot:
    if not snapshots:
        raise ValueError(
            "There are no snapshots of averages. Train with --post_hoc_ema (in a recipe `post_hoc_ema: {}`), which "
            f"writes them into the folder {FOLDER} of the run."
        )
    if step is None:
        return snapshots[-1]
    for snapshot in snapshots:
        if snapshot.step == step:
            return snapshot
    there = ", ".join(str(snapshot.step) for snapshot in snapshots)
    raise ValueError(f"There is no snapshot of step {step}; choose one of {there}.")


def _kept_since(
    snapshots: Sequence[Snapshot], module: str, name: str, since: int
) -> Iterator[tuple[tuple[int, float], Profile]]:
    """Yield the snapshots (step and width) of averages of a parameter that began at `since`, with their profiles."""
    for snapshot in snapshots:
        counted = snapshot.counts.get(module)
        if counted is not None and counted["since"].get(name) == since < counted["updates"]:
            for width in snapshot.sigma_rels:
                yield (snapshot.step, width), Profile(width, counted["updates"] - since)


def save_reconstructed(
    run_dir: Path, sigma_rel: float, output_dir: Path, step: int | None = None, save_dtype: str = "fp32"
) -> Average:
    """Save the pipeline (or the LoRA weights) of a finished run with an average of this width.

    Args:
        run_dir: output folder of the run.
        sigma_rel: the width.
        output_dir: where to save it; must not exist.
        step: the step of one of the snapshots; None: the last.
        save_dtype: "fp32", "fp16" or "bf16"; LoRA weights are in fp32.

    Raises:
        ValueError: the run has no result or no such snapshot, or these do not belong together; nothing is written.
    """
    if output_dir.exists():
        raise ValueError(f"{output_dir} exists; choose a new folder for the result.")
    is_lora = not (run_dir / INDEX_FILE).is_file()
    if is_lora and not (run_dir / LORA_FILE).is_file():
        raise ValueError(
            f"{run_dir} has no finished pipeline ({INDEX_FILE}) or LoRA weights ({LORA_FILE}), in which the average "
            "takes the place of the weights: finish the run first, by repeating its command."
        )
    average = reconstruct(read_snapshots(run_dir), sigma_rel, step)
    if average.error > LARGE_ERROR:
        logger.warning(
            "The snapshots only allow an average whose profile differs by %.0f %% from that of width %g; widths near "
            "those that were kept, and more frequent snapshots, bring it closer.",
            100 * average.error,
            sigma_rel,
        )
    with complete_folder(output_dir) as folder:
        if is_lora:
            _save_lora(run_dir, average, folder)
        else:
            _save_pipeline(run_dir, average, folder, DTYPES[save_dtype])
    return average


def _save_pipeline(run_dir: Path, average: Average, folder: Path, dtype: torch.dtype) -> None:
    name = json.loads((run_dir / INDEX_FILE).read_text(encoding="utf-8")).get("_class_name")
    cls: Any = getattr(public_names, str(name), None)
    if cls is None or not hasattr(cls, "from_pretrained"):
        raise ValueError(f"{run_dir / INDEX_FILE} names the class {name!r}, which is not one of this package.")
    pipeline = cls.from_pretrained(run_dir, dtype=torch.float32)
    for module, weights in average.weights.items():
        component = getattr(pipeline, module)
        shapes = {name: tuple(value.shape) for name, value in component.named_parameters()}
        if shapes != {name: tuple(value.shape) for name, value in weights.items()}:
            raise ValueError(
                f"The weights of step {average.step} are not those of the {module} in {run_dir}, which has levels "
                "or layers that were added later; choose a step of the last stage."
            )
        component.load_state_dict(weights, strict=False)  # buffers and tied weights are not averaged
        # diffusers' own `to` would warn about dtypes that it keeps.
        torch.nn.Module.to(component, dtype=dtype)
    pipeline.save_pretrained(folder)


def _save_lora(run_dir: Path, average: Average, folder: Path) -> None:
    """Write the averages of adapters in place of those in the file of the run, with its settings."""
    with safe_open(run_dir / LORA_FILE, framework="pt") as file:
        metadata, names = file.metadata(), set(file.keys())
    # The adapter's own name is part of the names of parameters, but not of those in the file.
    weights = {
        f"{module}.{name.replace('.default.', '.')}": value.contiguous()
        for module, part in average.weights.items()
        for name, value in part.items()
    }
    if weights.keys() != names:
        raise ValueError(
            f"{run_dir / LORA_FILE} has other layers than the snapshots, e.g. {min(weights.keys() ^ names)}; "
            "finish the run first, by repeating its command."
        )
    save_file(weights, folder / LORA_FILE, metadata=metadata)
