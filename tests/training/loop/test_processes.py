# SPDX-License-Identifier: Apache-2.0
"""A step is the same whatever it is made of: one process, several, accumulated, or sharded."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from diffusers_mdm import MDMPipeline
from diffusers_mdm.training.state.checkpoint_folders import list_checkpoints
from diffusers_mdm.training.state.post_hoc.snapshots import read_snapshots
from tests.training.image_files import png
from tests.training.loop.process_runs import (
    SHARDING,
    assert_close,
    assert_same_norms,
    assert_was_sharded,
    held_out_losses,
    steps,
    tensors,
    train,
)
from tests.training.plain_images import plain_model

LAYOUTS = {"batch_size": 8, "gradient_accumulation_steps": 1, "batch_fractions": None}
HALF = {**LAYOUTS, "batch_size": 4}
HELD_OUT = {"data": {"validation_split": "train"}}


@pytest.fixture(scope="module")
def whole(images_dir, tmp_path_factory):
    """One process with batches of eight."""
    return train(images_dir, tmp_path_factory.mktemp("whole"), LAYOUTS, recipe=HELD_OUT)


@pytest.fixture(scope="module")
def sharded(images_dir, tmp_path_factory):
    """Two processes with batches of four, each with its shards of the weights."""
    return train(images_dir, tmp_path_factory.mktemp("sharded"), HALF, "fsdp.yaml", recipe=HELD_OUT)


@pytest.mark.slow
def test_accumulated_steps_equal_whole_ones(whole, images_dir, tmp_path):
    fields = {**LAYOUTS, "batch_size": 4, "gradient_accumulation_steps": 2}
    train(images_dir, tmp_path, fields)
    # 1e-4 of the largest entry: float32 sums in another order over eight steps; observed 1e-5.
    assert_close(whole / "checkpoint-8", tmp_path / "checkpoint-8", 1e-4)


@pytest.mark.slow
def test_two_processes_equal_one(whole, images_dir, tmp_path):
    train(images_dir, tmp_path, HALF, "ddp_cpu.yaml")
    assert_close(whole / "checkpoint-8", tmp_path / "checkpoint-8", 1e-4)
    report = json.loads((tmp_path / "checkpoint-8" / "progress.json").read_text())
    assert report["progress"]["total_images"] == 8 * 8
    assert {line["kind"] for line in steps(tmp_path, 0)} == {"MULTI_CPU"}


@pytest.mark.slow
def test_two_processes_resume_where_they_stopped(images_dir, tmp_path):
    """Across growth, too: the checkpoint is of the first stage's last step but two."""
    first = train(images_dir, tmp_path / "first", HALF, "ddp_cpu.yaml")
    shutil.copytree(first / "checkpoint-2", tmp_path / "second" / "checkpoint-2")
    train(images_dir, tmp_path / "second", HALF, "ddp_cpu.yaml")
    assert_close(first / "checkpoint-8", tmp_path / "second" / "checkpoint-8", 1e-4)


@pytest.mark.slow
def test_two_processes_have_batches_of_the_same_bucket(tmp_path):
    """Otherwise a step of two processes would not be that of one, whose batch has one size."""
    data = tmp_path / "mixed"
    data.mkdir()
    for number, size in enumerate([(40, 24), (20, 12), (80, 50), (24, 40), (12, 20), (16, 16), (32, 32)]):
        (data / f"{number}.png").write_bytes(png((number * 35, 90, 200 - number * 25), size))
        (data / f"{number}.txt").write_text(f"image {number}")
    buckets = {"data": {"use_aspect_ratio_buckets": True}}
    train(data, tmp_path / "one", LAYOUTS, recipe=buckets)
    train(data, tmp_path / "two", HALF, "ddp_cpu.yaml", recipe=buckets)
    assert_close(tmp_path / "one" / "checkpoint-8", tmp_path / "two" / "checkpoint-8", 1e-4)
    shutil.copytree(tmp_path / "two" / "checkpoint-2", tmp_path / "again" / "checkpoint-2")
    train(data, tmp_path / "again", HALF, "ddp_cpu.yaml", recipe=buckets)
    assert_close(tmp_path / "two" / "checkpoint-8", tmp_path / "again" / "checkpoint-8", 1e-4)


@pytest.mark.slow
def test_sharded_steps_equal_those_of_one_process(whole, images_dir, tmp_path):
    """Really sharded, with FSDP 2: the first stage's first two steps, and then some of a grown model.

    Between the steps losses are measured, so that training goes on after forward passes without backward.
    """
    fields = {**HELD_OUT, "validation": {"prompts": [], "num_loss_images": 4}}
    options = {"max_train_steps": 2, "validation_steps": 1}
    train(images_dir, tmp_path, HALF, "fsdp.yaml", recipe=fields, options=options)
    assert_was_sharded(tmp_path)
    assert [line["norm"] for line in steps(tmp_path, 1)][:2] == pytest.approx(
        [line["norm"] for line in steps(whole, 0)][:2], rel=1e-4
    )
    assert_close(whole / "checkpoint-2", tmp_path / "checkpoint-2", 1e-4)
    assert MDMPipeline.from_pretrained(tmp_path).unet.sample_sizes == (8, 16)


@pytest.mark.slow
def test_sharded_processes_equal_one(whole, sharded):
    """Two stages, sharded with FSDP 2: weights, averages, moments, held-out losses and names are those of one process.

    The losses are measured in the middle of stages, so that training goes on after forward passes without backward.
    """
    assert_was_sharded(sharded)
    assert_same_norms(whole, sharded)
    for step in (2, 4, 8):
        assert_close(whole / f"checkpoint-{step}", sharded / f"checkpoint-{step}", 1e-4)
    expected, found = held_out_losses(whole), held_out_losses(sharded)
    assert [row["step"] for row in found] == [2, 4, 6, 8]
    assert set(found[-1]) >= {"validation_loss/level_0", "validation_loss/level_1"}
    for one, other in zip(expected, found, strict=True):
        assert other == pytest.approx(one, rel=1e-4)


@pytest.mark.slow
def test_sharded_processes_save_a_plain_pipeline(whole, sharded):
    images = [
        MDMPipeline.from_pretrained(folder)(
            "red line", num_inference_steps=2, generator=torch.Generator().manual_seed(0), output_type="pt"
        ).images
        for folder in (whole, sharded)
    ]
    assert images[0].shape == (1, 3, 16, 16)
    assert torch.allclose(*images, atol=1e-3)


@pytest.mark.slow
def test_what_one_process_saved_sharded_ones_continue(whole, images_dir, tmp_path):
    shutil.copytree(whole / "checkpoint-2", tmp_path / "checkpoint-2")
    train(images_dir, tmp_path, HALF, "fsdp.yaml", recipe=HELD_OUT)
    assert [path.name for path in list_checkpoints(tmp_path)] == [f"checkpoint-{step}" for step in (2, 4, 6, 8)]
    assert_was_sharded(tmp_path)
    assert_same_norms(whole, tmp_path)
    assert_close(whole / "checkpoint-8", tmp_path / "checkpoint-8", 1e-4)


@pytest.mark.slow
def test_what_sharded_processes_saved_one_continues(whole, sharded, images_dir, tmp_path):
    shutil.copytree(sharded / "checkpoint-6", tmp_path / "checkpoint-6")
    train(images_dir, tmp_path, LAYOUTS, recipe=HELD_OUT)
    assert {line["kind"] for line in steps(tmp_path, 0)} == {"NO"}
    assert_close(whole / "checkpoint-8", tmp_path / "checkpoint-8", 1e-4)


@pytest.mark.slow
def test_sharded_steps_are_accumulated_and_clipped_as_those_of_one_process(images_dir, tmp_path):
    """With parameters that stay whole until the backward pass, thinned outer batches, and averages kept elsewhere."""
    fields = {
        "last_stage": {"batch_fractions": [1.0, 0.5]},
        "options": {"offload_ema": True, "gradient_checkpointing": True},
        "recipe": {**HELD_OUT, "optimizer": {"max_grad_norm": 0.1}},
    }
    one = train(images_dir, tmp_path / "one", LAYOUTS, **fields)
    dealt = {**LAYOUTS, "batch_size": 2, "gradient_accumulation_steps": 2}
    two = train(images_dir, tmp_path / "two", dealt, "fsdp_zero2.yaml", **fields)
    assert_was_sharded(two)
    assert_same_norms(one, two)
    assert min(line["norm"] for line in steps(two, 0)) > 0.1
    assert_close(one / "checkpoint-8", two / "checkpoint-8", 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("last_stage", [{}, {"frozen_levels": 1}], ids=["all", "outer"])
def test_levels_that_share_layers_learn_on_two_processes_as_on_one(last_stage, images_dir, tmp_path):
    """Two stages: the shared layers belong to the inner level before another one runs them, too."""
    shared = {"share_time_embedding": True, "share_blocks": True}
    fields = {"outer": shared, "last_stage": last_stage, "recipe": HELD_OUT}
    one = train(images_dir, tmp_path / "one", LAYOUTS, **fields)
    two = train(images_dir, tmp_path / "two", HALF, "ddp_cpu.yaml", **fields)
    assert_close(one / "checkpoint-8", two / "checkpoint-8", 1e-4)
    names = tensors(two / "checkpoint-8")
    assert not any(name.startswith("unet: levels.1.embedding.time_embedding") for name in names)
    assert MDMPipeline.from_pretrained(two).unet.config.share_blocks == [False, True]


@pytest.mark.slow
def test_adapters_learn_sharded_as_on_one_process(whole, images_dir, tmp_path):
    """LoRA, whose frozen weights are sharded with the adapters; what is saved is the whole adapter."""
    sections = {"pretrained": {"path": str(whole)}, "text_encoder": {"from_pipeline": True}, "lora": {"rank": 2}}
    fields = {
        "recipe": {**HELD_OUT, **sections},
        "options": {"max_train_steps": 2},
    }
    layout = {**LAYOUTS, "levels": 2}
    one = train(images_dir, tmp_path / "one", layout, **fields)
    two = train(images_dir, tmp_path / "two", {**layout, "batch_size": 4}, "fsdp.yaml", **fields)
    assert_was_sharded(two)
    assert_same_norms(one, two)
    assert_close(one / "checkpoint-4", two / "checkpoint-4", 1e-4)
    adapters = [load_file(folder / "pytorch_lora_weights.safetensors") for folder in (one, two)]
    assert any(value.any() for name, value in adapters[1].items() if "lora_B" in name)
    for name, value in adapters[0].items():
        torch.testing.assert_close(adapters[1][name], value, atol=1e-6, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "config"),
    [("muon", "ddp_cpu.yaml"), ("muon", "fsdp.yaml"), ("prodigy", "ddp_cpu.yaml"), ("adamw_8bit", "ddp_cpu.yaml")],
)
def test_other_optimizers_learn_on_two_processes_as_on_one(name, config, images_dir, tmp_path):
    """Two stages; a matrix whose rows are on both processes is orthogonalised as a whole."""
    layout = {**LAYOUTS, "learning_rate": 1.0} if name == "prodigy" else LAYOUTS
    optimizer = {"name": name}
    if name == "adamw_8bit":
        pytest.importorskip("bitsandbytes")
        optimizer = {"use_8bit_adam": True}
    fields = {"recipe": {**HELD_OUT, "optimizer": optimizer}}
    one = train(images_dir, tmp_path / "one", layout, **fields)
    two = train(images_dir, tmp_path / "two", {**layout, "batch_size": 4}, config, **fields)
    if config in SHARDING:
        assert_was_sharded(two)
    # With 8 bits, a second moment that is rounded to zero or to the smallest code, depending on the last digit of a
    # gradient, changes the next update entirely, so only the first steps can be compared.
    step = "checkpoint-2" if name == "adamw_8bit" else "checkpoint-8"
    # Muon makes small singular values, of which rounding is a larger part, as large as the others.
    assert_close(one / step, two / step, 1e-2 if name == "muon" else 1e-3)


@pytest.mark.slow
def test_power_averages_are_the_same_on_sharded_processes(images_dir, tmp_path):
    """Whole in checkpoints and snapshots, through growth."""
    fields = {"recipe": {**HELD_OUT, "post_hoc_ema": {"snapshot_steps": 2}}}
    one = train(images_dir, tmp_path / "one", LAYOUTS, **fields)
    two = train(images_dir, tmp_path / "two", HALF, "fsdp.yaml", **fields)
    assert_was_sharded(two)
    for step in (2, 8):
        files = [folder / f"checkpoint-{step}" / "power_averages.safetensors" for folder in (one, two)]
        first, second = (load_file(file) for file in files)
        assert first.keys() == second.keys()
        for name, value in first.items():
            torch.testing.assert_close(second[name], value, rtol=1e-4, atol=1e-6)
    snapshots = [read_snapshots(folder) for folder in (one, two)]
    assert [[snapshot.step for snapshot in found] for found in snapshots] == [[2, 4, 6, 8]] * 2
    assert [snapshot.counts for snapshot in snapshots[0]] == [snapshot.counts for snapshot in snapshots[1]]


@pytest.mark.slow
@pytest.mark.parametrize("config", ["ddp_cpu.yaml", "fsdp.yaml"])
def test_extra_losses_are_the_same_on_two_processes(config, images_dir, tmp_path):
    """Two stages with thinned outer batches: the model, and without FSDP the projection that the alignment trains."""
    losses = {"perceptual": {"network": "tiny"}}
    if config not in SHARDING:
        losses["alignment"] = {"encoder": "tiny", "hidden_channels": 8}
    fields = {"recipe": {**HELD_OUT, **losses}, "last_stage": {"batch_fractions": [1.0, 0.5]}}
    layout = {**LAYOUTS, "loss_weighting": "sigmoid", "sigmoid_bias": -1.0}
    one = train(images_dir, tmp_path / "one", layout, **fields)
    two = train(images_dir, tmp_path / "two", {**layout, "batch_size": 4}, config, **fields)
    assert_close(one / "checkpoint-8", two / "checkpoint-8", 1e-4)
    if config in SHARDING:
        assert_was_sharded(two)
        return
    first, second = (load_file(folder / "checkpoint-8" / "extra_losses.safetensors") for folder in (one, two))
    assert first.keys() == second.keys()
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("config", ["ddp_cpu.yaml", "fsdp.yaml"])
def test_two_processes_end_a_stage_together_by_a_metric(config, images_dir, tmp_path):
    """The main process generates and measures, and both stop after two measurements without a gain; so they do if they
    resume between these.
    """
    plateau = {"every_steps": 1, "patience": 2, "min_gain": 0.99, "metric": "retrieval"}
    validation = {"prompts": [], "metrics": ["retrieval"], "num_metric_images": 3, "num_inference_steps": 1}
    fields = {"recipe": {**HELD_OUT, "validation": validation}, "last_stage": {"until_plateau": plateau}}
    whole = train(images_dir, tmp_path / "whole", HALF, config, **fields)
    assert len(steps(whole, 0)) == len(steps(whole, 1)) == 7
    shutil.copytree(whole / "checkpoint-6", tmp_path / "again" / "checkpoint-6")
    again = train(images_dir, tmp_path / "again", HALF, config, **fields)
    assert len(steps(again, 0)) == len(steps(again, 1)) == 1
    first, second = (
        json.loads((folder / "checkpoint-7" / "progress.json").read_text())["progress"] for folder in (whole, again)
    )
    assert "validation retrieval of level 1" in first["stage_ended"]
    assert first["plateau"]["measurements"] == 3
    assert second == first


@pytest.mark.slow
def test_a_model_without_conditions_learns_on_two_processes_as_on_one(images_dir, tmp_path):
    without = {"model": plain_model(), "text_encoder": None, "data": {"caption": ""}}
    fields = {"recipe": {**without, "validation": {"prompts": [], "num_validation_images": 0}}}
    one = train(images_dir, tmp_path / "one", LAYOUTS, **fields)
    two = train(images_dir, tmp_path / "two", HALF, "ddp_cpu.yaml", **fields)
    assert_close(one / "checkpoint-8", two / "checkpoint-8", 1e-4)
