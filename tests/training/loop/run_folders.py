# SPDX-License-Identifier: Apache-2.0
"""What is in the folder of a tiny run, for comparing runs."""

import json

import torch
from safetensors.torch import load_file

from diffusers_mdm.training.state.run import RunOptions

# Checkpoints at the ends of stages only, and no samples.
NOTHING_BESIDE = {"checkpointing_steps": 100, "validation_steps": 100, "skip_final_inference": True}


def options(output_dir, **fields) -> RunOptions:
    settings = {"report_to": None, "checkpointing_steps": 2, "checkpoints_total_limit": 10, "logging_steps": 1}
    return RunOptions(output_dir=output_dir, **{**settings, **fields})


def only_result(output_dir, **fields) -> RunOptions:
    """Options of a run of which only the result counts: checkpoints at the ends of stages, and no samples."""
    return options(output_dir, **{**NOTHING_BESIDE, **fields})


def weights(folder) -> dict[str, torch.Tensor]:
    parts = {"unet": "diffusion_pytorch_model", "text_encoder": "model"}
    return {
        f"{part}.{name}": value
        for part, stem in parts.items()
        for name, value in load_file(folder / part / f"{stem}.safetensors").items()
    }


def averages(checkpoint) -> dict[str, torch.Tensor]:
    """The averages of all trained modules, "<module>//<parameter>"; of LoRA adapters they are in one file."""
    if (checkpoint / "ema.safetensors").exists():
        return load_file(checkpoint / "ema.safetensors")
    files = {module: checkpoint.glob(f"{module}_ema/*.safetensors") for module in ("unet", "text_encoder")}
    return {
        f"{module}//{name}": value
        for module, found in files.items()
        for file in found
        for name, value in load_file(file).items()
    }


def everything(checkpoint) -> dict[str, torch.Tensor]:
    """Weights, averages and optimizer state."""
    return {
        **weights(checkpoint),
        **{f"ema: {name}": value for name, value in averages(checkpoint).items()},
        **{f"optimizer: {name}": value for name, value in load_file(checkpoint / "optimizer.safetensors").items()},
    }


def assert_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [name for name, value in one.items() if not torch.equal(value, other[name])] == []


def counters(checkpoint) -> dict:
    return json.loads((checkpoint / "progress.json").read_text())["progress"]
