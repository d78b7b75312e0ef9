# SPDX-License-Identifier: Apache-2.0
"""What `diffusers-mdm info` prints: facts from configs and file sizes. No weights are read, no code is executed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled
from safetensors import SafetensorError, safe_open

from ..public_names import MatryoshkaScheduler, NestedUNetModel
from .generating.drawing_memory import step_bytes
from .saved_pipelines import class_name, read_index

GIB = 2**30
# What the parts of a pipeline folder are called, and of a model folder, which has only the U-Net.
UNET, SCHEDULER = "unet", "scheduler"
WEIGHTS = ".safetensors"


def read_facts(model: str, batch_size: int = 1, dtype: str = "float32", revision: str | None = None) -> dict[str, Any]:
    """Return the facts about a model, as plain JSON values with sizes in bytes.

    Args:
        model: pipeline folder, folder with `unet/` and `scheduler/` as the converters write without a text encoder,
            model folder, or Hub id.
        batch_size: images or clips that are generated together, for the memory.
        dtype: precision of the model, for the memory.
        revision: of a Hub id.

    Raises:
        ValueError: there is no model of this package.
        OSError: the Hub cannot be reached.
    """
    index = _index(model, revision)
    unet = _unet(model, revision)
    scheduler = _scheduler(model, revision)
    files = file_sizes(model, revision)
    facts: dict[str, Any] = {
        "model": model,
        "class": class_name(index) if index else None,
        "levels": _levels(unet, scheduler),
        "parameters": count_parameters(unet),
        "shared_parameters": sum(p.numel() for name, p in unet.named_parameters() if not name.startswith("levels.")),
        "text_width": unet.config["encoder_hid_dim"] or unet.config["cross_attention_dim"],
        "classes": None if unet.config["num_class_embeds"] is None else unet.config["num_class_embeds"] - 1,
        "schedule": _schedule(scheduler),
        "defaults": dict(index.get("drawing_defaults") or {}),
        "components": components(model, index, files),
        "bytes_on_disk": None if files is None else sum(files.values()),
    }
    return facts | {"memory": _memory(unet, facts["components"], batch_size, getattr(torch, dtype))}


def _index(model: str, revision: str | None) -> dict[str, Any]:
    """Return the index of a pipeline; empty for a local folder that has only models."""
    folder = Path(model)
    if folder.is_dir() and not (folder / "model_index.json").is_file():
        return {}
    return read_index(model, revision)


def _unet(model: str, revision: str | None) -> Any:
    """Build the U-Net without weights, from its config."""
    subfolder = None if (Path(model) / "config.json").is_file() else UNET
    try:
        config = NestedUNetModel.load_config(model, subfolder=subfolder, revision=revision)
    except OSError as error:
        raise ValueError(f"{model} holds no NestedUNetModel: {error}") from error
    found = config.get("_class_name", NestedUNetModel.__name__)
    if found != NestedUNetModel.__name__:
        raise ValueError(f"{model} holds a {found}; expected a {NestedUNetModel.__name__}.")
    with torch.device("meta"):
        return NestedUNetModel.from_config(config).eval()


def _scheduler(model: str, revision: str | None) -> Any:
    """Return the scheduler; None if there is none, or one of diffusers."""
    try:
        config = MatryoshkaScheduler.load_config(model, subfolder=SCHEDULER, revision=revision)
    except OSError:
        return None
    return MatryoshkaScheduler.from_config(config) if config.get("_class_name") == "MatryoshkaScheduler" else None


def count_parameters(module: torch.nn.Module, prefix: str = "") -> int:
    """Count the parameters whose names begin with `prefix`."""
    return sum(parameter.numel() for name, parameter in module.named_parameters() if name.startswith(prefix))


def _levels(unet: Any, scheduler: Any) -> list[dict[str, Any]]:
    levels = []
    for position, (side, frames) in enumerate(zip(unet.sample_sizes, unet.level_frames, strict=True)):
        level_config = unet.level_configs[position]
        level: dict[str, Any] = {
            "level": position,
            "side": side,
            "frames": frames,
            "channels": list(level_config.block_out_channels),
            "attention_layers": list(level_config.attention_layers_per_block),
            "patch_size": level_config.patch_size,
            "parameters": count_parameters(unet, f"levels.{position}."),
        }
        if scheduler is not None:
            level["log_snr"] = _log_snr_range(scheduler, side / unet.sample_sizes[0])
        levels.append(level)
    return levels


def _log_snr_range(scheduler: Any, ratio: float) -> list[float]:
    """Return the log SNR of a level at the first and the last timestep (least and most noise)."""
    ends = torch.tensor([0, scheduler.config["num_train_timesteps"] - 1])
    powers = scheduler.alpha_cumprod(ends, ratio).cpu().double().clamp(1e-12, 1 - 1e-12)
    return [round(math.log(power / (1 - power)), 2) for power in powers.tolist()]


def _schedule(scheduler: Any) -> dict[str, Any] | None:
    keys = ["beta_schedule", "num_train_timesteps", "prediction_type", "shift_power", "level_scaling"]
    keys += ["algorithm", "timestep_spacing", "clip_sample", "thresholding"]
    return None if scheduler is None else {key: scheduler.config[key] for key in keys}


def components(model: str, index: Mapping[str, Any], files: Mapping[str, int] | None) -> dict[str, dict[str, Any]]:
    """Return class, bytes on disk, and for local folders the number of weights and their dtypes, by component."""
    parts = {name: value for name, value in index.items() if isinstance(value, list) and value[0] is not None}
    if not index:
        names = [name for name in (UNET, SCHEDULER) if (Path(model) / name).is_dir()] or [""]
        parts = {name: [None, None] for name in names}
    found = {}
    for name, (_, cls) in parts.items():
        own = {path: size for path, size in (files or {}).items() if not name or path.startswith(f"{name}/")}
        weights = [path for path in own if path.endswith(WEIGHTS)]
        facts: dict[str, Any] = {"class": cls, "bytes_on_disk": sum(own.values()) if files is not None else None}
        if Path(model).is_dir() and weights:
            facts["weights"], facts["dtypes"] = read_headers(Path(model) / path for path in weights)
        found[name or UNET] = facts
    return found


def read_headers(paths: Iterable[Path]) -> tuple[int, list[str]]:
    """Return the number of weights in safetensors files, and their dtypes, from the headers alone.

    Raises:
        ValueError: a file is damaged.
    """
    number, dtypes = 0, set()
    for path in paths:
        try:
            with safe_open(path, "pt") as file:
                for name in file.keys():  # noqa: SIM118  not a dict
                    part = file.get_slice(name)
                    number += math.prod(part.get_shape())
                    dtypes.add(str(part.get_dtype()))
        except SafetensorError as error:
            raise ValueError(f"{path} is damaged ({error}); fetch it again.") from error
    return number, sorted(dtypes)


def file_sizes(model: str, revision: str | None = None) -> dict[str, int] | None:
    """Return the bytes of all files of a folder or Hub id, by path; None if the Hub cannot be asked.

    Hidden files and training checkpoints are not counted.
    """
    folder = Path(model)
    if folder.is_dir():
        paths = [path for path in folder.rglob("*") if path.is_file()]
        sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in paths}
    else:
        try:
            siblings = HfApi().model_info(model, revision=revision, files_metadata=True).siblings or []
        except (OfflineModeIsEnabled, LocalEntryNotFoundError, HfHubHTTPError):
            return None
        sizes = {file.rfilename: file.size or 0 for file in siblings}
    return {path: size for path, size in sizes.items() if not _is_beside(path)}


def _is_beside(path: str) -> bool:
    parts = PurePosixPath(path).parts
    return any(part.startswith((".", "checkpoint-")) for part in parts)


def _memory(
    unet: Any, components: Mapping[str, Mapping[str, Any]], batch_size: int, dtype: torch.dtype
) -> dict[str, Any]:
    """Return bytes of the weights of all components in `dtype`, and of a guided step at each number of levels."""
    others = [facts.get("weights") for name, facts in components.items() if name != UNET and facts.get("weights")]
    return {
        "dtype": str(dtype).removeprefix("torch."),
        "batch_size": batch_size,
        "unet_bytes": count_parameters(unet) * dtype.itemsize,
        "other_bytes": sum(number for number in others if number) * dtype.itemsize,
        "step_bytes": [
            step_bytes(unet, num_levels, batch_size, dtype) for num_levels in range(1, len(unet.sample_sizes) + 1)
        ],
    }


def describe(facts: Mapping[str, Any]) -> str:
    """Format facts as text."""
    lines = [f"{facts['model']}: {facts['class'] or 'NestedUNetModel'}, {facts['parameters']:,} parameters"]
    conditions = []
    if facts["text_width"] is not None:
        conditions.append(f"texts (features of width {facts['text_width']})")
    if facts["classes"] is not None:
        conditions.append(f"{facts['classes']} classes")
    lines.append(f"conditioned on: {' and '.join(conditions) or 'nothing'}")
    lines.append(f"levels, innermost first (shared: {facts['shared_parameters']:,} parameters):")
    for level in facts["levels"]:
        frames = f", {level['frames']} frames" if level["frames"] > 1 else ""
        patches = f", patches of {level['patch_size']}" if level["patch_size"] > 1 else ""
        snr = "" if "log_snr" not in level else f", log SNR {level['log_snr'][0]:g} to {level['log_snr'][1]:g}"
        lines.append(
            f"  {level['level']}: {level['side']} px{frames}{patches}, {level['parameters']:,} parameters, channels "
            f"{level['channels']}{snr}"
        )
    for title in ("schedule", "defaults"):
        if facts[title]:
            lines.append(f"{title}: " + ", ".join(f"{key} {value}" for key, value in facts[title].items()))
    lines.append("components:")
    for name, part in facts["components"].items():
        disk = "size unknown" if part["bytes_on_disk"] is None else f"{spell(part['bytes_on_disk'])} on disk"
        weights = f", {part['weights']:,} weights as {', '.join(part['dtypes'])}" if "weights" in part else ""
        lines.append(f"  {name}{' (' + part['class'] + ')' if part['class'] else ''}: {disk}{weights}")
    memory = facts["memory"]
    of_others = f" + {spell(memory['other_bytes'])} for the rest" if memory["other_bytes"] else ""
    lines.append(
        f"memory in {memory['dtype']}: weights {spell(memory['unet_bytes'])}{of_others}; a guided step of a batch of "
        f"{memory['batch_size']}, besides the weights:"
    )
    for level, taken in zip(facts["levels"], memory["step_bytes"], strict=True):
        lines.append(f"  up to level {level['level']} ({level['side']} px): {spell(taken)}")
    lines.append("  (from a simulated step; kernels and the allocator need more, plan for 20 %)")
    return "\n".join(lines)


def spell(size: int) -> str:
    """Spell a number of bytes."""
    return f"{size / GIB:.2f} GiB" if size >= GIB else f"{size / 2**20:.1f} MiB"
