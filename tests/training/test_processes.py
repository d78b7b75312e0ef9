# SPDX-License-Identifier: Apache-2.0
"""A step is the same whatever it is made of: one process, several, accumulated, or sharded."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from diffusers_mdm import MDMPipeline
from diffusers_mdm.training.checkpoints import list_checkpoints

HERE = Path(__file__).parent
CONFIGS = HERE.parents[1] / "training" / "accelerate"
OPTIONS = {"checkpointing_steps": 2, "checkpoints_total_limit": None}


def train(pictures_dir, output_dir, stage_fields, config=None, outer_fields=None, **options) -> Path:
    """Run train_in_processes.py, on two processes with an accelerate config."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(HERE.parents[1]), str(HERE)]),
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
    }
    launch = [sys.executable]
    if config is not None:
        launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(CONFIGS / config)]
        launch += ["--main_process_port", "0"]
    fields = [json.dumps(part) for part in (stage_fields, {**OPTIONS, **options}, outer_fields or {})]
    command = [*launch, str(HERE / "train_in_processes.py"), str(pictures_dir), str(output_dir), *fields]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return output_dir


def tensors(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Weights, averages and optimizer state of a checkpoint."""
    files = {
        "unet": checkpoint / "unet" / "diffusion_pytorch_model.safetensors",
        "text_encoder": checkpoint / "text_encoder" / "model.safetensors",
        "optimizer": checkpoint / "optimizer.safetensors",
        "ema": checkpoint / "ema.safetensors",
    }
    return {f"{part}: {name}": value for part, file in files.items() for name, value in load_file(file).items()}


def assert_close(one: Path, other: Path, tolerance: float) -> None:
    """Equal checkpoints but for rounding: `tolerance` of each tensor's largest entry, or of a learning rate."""
    first, second = tensors(one), tensors(other)
    assert first.keys() == second.keys()
    for name, value in first.items():
        allowed = tolerance * max(value.abs().max().item(), 1e-3)
        assert (value - second[name]).abs().max().item() <= allowed, name


LAYOUTS = {"batch_size": 8, "gradient_accumulation_steps": 1, "batch_fractions": None}


@pytest.fixture(scope="module")
def whole(pictures_dir, tmp_path_factory):
    """One process with batches of eight."""
    return train(pictures_dir, tmp_path_factory.mktemp("whole"), LAYOUTS)


def test_accumulated_steps_equal_whole_ones(whole, pictures_dir, tmp_path):
    fields = {**LAYOUTS, "batch_size": 4, "gradient_accumulation_steps": 2}
    train(pictures_dir, tmp_path, fields)
    # 1e-4 of the largest entry: float32 sums in another order over eight steps; observed 1e-5.
    assert_close(whole / "checkpoint-8", tmp_path / "checkpoint-8", 1e-4)


@pytest.mark.slow
def test_two_processes_equal_one(whole, pictures_dir, tmp_path):
    train(pictures_dir, tmp_path, {**LAYOUTS, "batch_size": 4}, "ddp_cpu.yaml")
    assert_close(whole / "checkpoint-8", tmp_path / "checkpoint-8", 1e-4)
    report = json.loads((tmp_path / "checkpoint-8" / "progress.json").read_text())
    assert report["progress"]["total_images"] == 8 * 8


@pytest.mark.slow
def test_two_processes_resume_where_they_stopped(pictures_dir, tmp_path):
    """Across growth, too: the checkpoint is of the first stage's last step but two."""
    fields = {**LAYOUTS, "batch_size": 4}
    first = train(pictures_dir, tmp_path / "first", fields, "ddp_cpu.yaml")
    shutil.copytree(first / "checkpoint-2", tmp_path / "second" / "checkpoint-2")
    train(pictures_dir, tmp_path / "second", fields, "ddp_cpu.yaml")
    assert_close(first / "checkpoint-8", tmp_path / "second" / "checkpoint-8", 1e-4)


@pytest.mark.slow
def test_sharded_processes_equal_one_and_save_a_plain_pipeline(whole, pictures_dir, tmp_path):
    train(pictures_dir, tmp_path, {**LAYOUTS, "batch_size": 4}, "fsdp_cpu.yaml")
    assert_close(whole / "checkpoint-8", tmp_path / "checkpoint-8", 1e-4)
    pictures = [
        MDMPipeline.from_pretrained(folder)(
            "red line", num_inference_steps=2, generator=torch.Generator().manual_seed(0), output_type="pt"
        ).images
        for folder in (whole, tmp_path)
    ]
    assert pictures[0].shape == (1, 3, 16, 16)
    assert torch.allclose(*pictures, atol=1e-3)


@pytest.mark.slow
def test_what_one_process_saved_sharded_ones_continue(whole, pictures_dir, tmp_path):
    shutil.copytree(whole / "checkpoint-6", tmp_path / "checkpoint-6")
    train(pictures_dir, tmp_path, {**LAYOUTS, "batch_size": 4}, "fsdp_cpu.yaml")
    assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint-6", "checkpoint-8"]
    assert_close(whole / "checkpoint-8", tmp_path / "checkpoint-8", 1e-4)


@pytest.mark.slow
def test_levels_that_share_layers_learn_on_two_processes_as_on_one(pictures_dir, tmp_path):
    """Two stages: the shared layers belong to the inner level before another one runs them, too."""
    shared = {"share_time_embedding": True, "share_blocks": True}
    one = train(pictures_dir, tmp_path / "one", LAYOUTS, outer_fields=shared)
    fields = {**LAYOUTS, "batch_size": 4}
    two = train(pictures_dir, tmp_path / "two", fields, "ddp_cpu.yaml", outer_fields=shared)
    assert_close(one / "checkpoint-8", two / "checkpoint-8", 1e-4)
    names = tensors(two / "checkpoint-8")
    assert not any(name.startswith("unet: levels.1.embedding.time_embedding") for name in names)
    assert MDMPipeline.from_pretrained(two).unet.config.share_blocks == [False, True]


@pytest.mark.slow
def test_shared_layers_are_sharded_as_units_of_their_own():
    """Really sharded, with FSDP 2 on two processes: see shard_in_processes.py."""
    environment = {**os.environ, "PYTHONPATH": str(HERE.parents[1]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command.append(str(HERE / "shard_in_processes.py"))
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "sharded units: 8" in done.stdout
    together = subprocess.run([*command, "together"], env=environment, capture_output=True, text=True, check=False)
    assert "got mixed torch.Tensor and DTensor" in together.stderr  # what standing alone is for
