# SPDX-License-Identifier: Apache-2.0
"""Runs of train_in_processes.py in one process and in two, and what they left, compared."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env
from safetensors.torch import load_file

from tests.training.loop.run_folders import averages

HERE = Path(__file__).parents[1]
CONFIGS = HERE.parents[1] / "training" / "accelerate"
SHARDING = ("fsdp.yaml", "fsdp_zero2.yaml")
OPTIONS = {"checkpointing_steps": 2, "checkpoints_total_limit": None}


def train(images_dir, output_dir, stage_fields, config=None, **fields) -> Path:
    """Run train_in_processes.py, on two processes with an accelerate config; `fields` are those of its argument."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(HERE.parents[1]), str(HERE)]),
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
    }
    fields = {"stage": stage_fields, "as_gpus": config in SHARDING, **fields}
    fields["options"] = {**OPTIONS, **fields.get("options", {})}
    words = [str(HERE / "train_in_processes.py"), str(images_dir), str(output_dir), json.dumps(fields)]
    if config in SHARDING:
        run_as_launched([sys.executable, *words], environment, config)
        return output_dir
    launch = [sys.executable]
    if config is not None:
        launch += ["-m", "accelerate.commands.launch", "--config_file", str(CONFIGS / config)]
        launch += ["--main_process_port", "0"]
    environment["ACCELERATE_USE_CPU"] = "true"
    done = subprocess.run([*launch, *words], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return output_dir


def run_as_launched(command, environment, config) -> None:
    """Run a command as two processes that find what `accelerate launch` would tell them; that itself takes longer."""
    words = ["--config_file", str(CONFIGS / config), "--num_processes", "2", command[1]]
    arguments, _, _ = _validate_launch_command(launch_command_parser().parse_args(words))
    told = {name: value for name, value in prepare_multi_gpu_env(arguments).items() if name not in os.environ}
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    told |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    processes = [
        subprocess.Popen(
            command,
            env={**environment, **told, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        messages = [process.communicate(timeout=400)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, message in zip(processes, messages, strict=True):
        assert process.returncode == 0, message[-4000:]


def steps(output_dir: Path, process: int) -> list[dict]:
    """What a process saw at each step."""
    return [json.loads(line) for line in (output_dir / f"steps-{process}.jsonl").read_text().splitlines()]


def assert_was_sharded(output_dir: Path) -> None:
    """At each step each of two processes held about half of the weights, and of none of them the whole."""
    first, second = steps(output_dir, 0), steps(output_dir, 1)
    assert len(first) == len(second) > 0
    for one, other in zip(first, second, strict=True):
        assert one["kind"] == other["kind"] == "FSDP"
        # Every parameter is split along its first axis, and the first process has the longer part.
        assert 0.45 * one["whole"] < other["here"] <= one["here"] < 0.55 * one["whole"]
        assert one["here"] + other["here"] == one["whole"] == other["whole"]
        assert one["units"] > 1


def assert_same_norms(one_dir: Path, two_dir: Path) -> None:
    """The norm that clips is that of all gradients, on both of two processes."""
    for process in range(2):
        found = steps(two_dir, process)
        for line, plain in zip(found, steps(one_dir, 0)[-len(found) :], strict=True):
            assert line["whole"] == plain["whole"] == plain["here"]
            assert line["norm"] == pytest.approx(plain["norm"], rel=1e-4)


def held_out_losses(output_dir: Path) -> list[dict]:
    """The measured validation losses of a run, with their steps."""
    rows = [json.loads(line) for line in (output_dir / "history.jsonl").read_text().splitlines()]
    measured = [
        {name: value for name, value in row.items() if name == "step" or name.startswith("validation_loss/level")}
        for row in rows
    ]
    return [row for row in measured if len(row) > 1]


def tensors(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Weights, averages and optimizer state of a checkpoint."""
    files = {
        "unet": checkpoint / "unet" / "diffusion_pytorch_model.safetensors",
        "text_encoder": checkpoint / "text_encoder" / "model.safetensors",
        "optimizer": checkpoint / "optimizer.safetensors",
    }
    if not files["text_encoder"].exists():
        del files["text_encoder"]
    if (checkpoint / "pytorch_lora_weights.safetensors").exists():
        del files["unet"]
        files["adapter"] = checkpoint / "pytorch_lora_weights.safetensors"
    found = {f"{part}: {name}": value for part, file in files.items() for name, value in load_file(file).items()}
    return {**found, **{f"ema: {name}": value for name, value in averages(checkpoint).items()}}


def assert_close(one: Path, other: Path, tolerance: float) -> None:
    """Equal checkpoints but for rounding: `tolerance` of each tensor's largest entry, or of a learning rate."""
    first, second = tensors(one), tensors(other)
    assert first.keys() == second.keys()
    for name, value in first.items():
        allowed = tolerance * max(value.abs().max().item(), 1e-3)
        assert (value - second[name]).abs().max().item() <= allowed, name
