# SPDX-License-Identifier: Apache-2.0
"""Averages made after training: those that were kept come back, others follow their definition, and runs that were
interrupted keep the same ones.
"""

import dataclasses
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from diffusers_mdm import MDMPipeline
from diffusers_mdm.training.commands import average_reconstruction
from diffusers_mdm.training.loop.engine import run_recipe
from diffusers_mdm.training.recipe.optimizer import PostHocEmaRecipe
from diffusers_mdm.training.recipe.recipe import LoraRecipe, PretrainedRecipe, ValidationRecipe
from diffusers_mdm.training.recipe.text_encoder import TextEncoderRecipe
from diffusers_mdm.training.state.complete_folders import write_manifest
from diffusers_mdm.training.state.post_hoc.power_averages import PowerAverages
from diffusers_mdm.training.state.post_hoc.profiles import exponent_of
from diffusers_mdm.training.state.post_hoc.reconstruction import reconstruct, save_reconstructed
from diffusers_mdm.training.state.post_hoc.snapshots import FOLDER, Snapshot, in_16_bits, read_snapshots
from tests.training.loop.run_folders import only_result, options
from tests.training.tiny_run import tiny_recipe

WIDTHS = (0.05, 0.1)


def averaged_recipe(images_dir, **stage_fields):
    recipe = tiny_recipe(images_dir, steps=3, **stage_fields)
    post_hoc = PostHocEmaRecipe(WIDTHS, snapshot_steps=2)
    return dataclasses.replace(recipe, post_hoc_ema=post_hoc, use_ema=False, validation=ValidationRecipe())


@pytest.fixture(scope="module")
def run_dir(images_dir, tmp_path_factory):
    """Two stages of three steps, with snapshots after 2, 3, 4 and 6."""
    return run_recipe(averaged_recipe(images_dir), options(tmp_path_factory.mktemp("averaged")))


def train_by_hand(folder, values, every: int) -> list[Snapshot]:
    """Take snapshots of the averages of one weight."""
    average = PowerAverages.beginning_with({"w": torch.zeros(2)}, WIDTHS)
    found = []
    for step, value in enumerate(values, start=1):
        average.update({"w": torch.nn.Parameter(torch.full((2,), float(value)))})
        if step % every == 0:
            counts = {"unet": {"updates": step, "since": dict(average.since)}}
            snapshot = Snapshot(folder / str(step), step, WIDTHS, counts)
            snapshot.folder.mkdir()
            for width, shadows in average.shadows.items():
                save_file({name: in_16_bits(part) for name, part in shadows.items()}, snapshot.file("unet", width))
            found.append(snapshot)
    return found


def test_kept_averages_come_back(run_dir):
    snapshots = read_snapshots(run_dir)
    assert [snapshot.step for snapshot in snapshots] == [2, 3, 4, 6]
    exact = load_file(run_dir / "checkpoint-6" / "power_averages.safetensors")
    for width in WIDTHS:
        average = reconstruct(snapshots, width)
        assert (average.step, average.num_snapshots) == (6, 4)
        assert average.error < 1e-4
        assert average.weights.keys() == {"unet", "text_encoder"}
        for module, weights in average.weights.items():
            for name, value in weights.items():
                # Half precision of the snapshots.
                torch.testing.assert_close(value, exact[f"{module}//{width}//{name}"], rtol=1e-3, atol=1e-5)


def test_snapshots_have_16_bits(run_dir):
    for file in (run_dir / FOLDER).rglob("*.safetensors"):
        assert {value.dtype for value in load_file(file).values()} == {torch.float16}
    assert not list(run_dir.rglob("*.unfinished*"))


@pytest.mark.parametrize("width", [0.05, 0.07, 0.1, 0.15, 0.2])
def test_a_linear_trajectory_has_the_average_of_the_formula(tmp_path, width):
    number = 800
    snapshots = train_by_hand(tmp_path, [step / number for step in range(1, number + 1)], every=50)
    average = reconstruct(snapshots, width)
    exponent = exponent_of(width)
    wanted = (exponent + 1) / (exponent + 2)
    torch.testing.assert_close(average.weights["unet"]["w"], torch.full((2,), wanted), rtol=0, atol=3e-3)
    assert average.error < 0.03
    half = reconstruct(snapshots, width, step=400).weights["unet"]["w"]
    torch.testing.assert_close(half, torch.full((2,), wanted / 2), rtol=0, atol=3e-3)


def test_constant_weights_stay(tmp_path):
    """Also where the profile cannot be matched, since the weights of the sum add up to 1."""
    snapshots = train_by_hand(tmp_path, [2.0] * 8, every=4)
    for width in (0.02, 0.28):
        torch.testing.assert_close(reconstruct(snapshots, width).weights["unet"]["w"], torch.full((2,), 2.0))


def test_a_resumed_run_keeps_the_same_averages_and_snapshots(run_dir, images_dir, tmp_path):
    """From within the first stage, with snapshots of a continuation that is given up."""
    shutil.copytree(run_dir / "checkpoint-2", tmp_path / "checkpoint-2")
    for step in (2, 3):
        shutil.copytree(run_dir / FOLDER / f"snapshot-{step}", tmp_path / FOLDER / f"snapshot-{step}")
    run_recipe(averaged_recipe(images_dir), only_result(tmp_path))
    names = sorted(path.name for path in (tmp_path / FOLDER).iterdir())
    assert names == ["set-aside-snapshot-3", "snapshot-2", "snapshot-3", "snapshot-4", "snapshot-6"]
    for file in ("power_averages.safetensors", "power_averages.json"):
        one, other = (folder / "checkpoint-6" / file for folder in (run_dir, tmp_path))
        assert one.read_bytes() == other.read_bytes(), file
    for one, other in zip(read_snapshots(run_dir), read_snapshots(tmp_path), strict=True):
        assert one.counts == other.counts
    changed = dataclasses.replace(averaged_recipe(images_dir), post_hoc_ema=PostHocEmaRecipe((0.05, 0.2)))
    with pytest.raises(ValueError, match=r"`post_hoc_ema\.sigma_rels`"):
        run_recipe(changed, options(tmp_path))


def test_a_new_level_is_averaged_from_its_own_beginning(run_dir):
    counted = read_snapshots(run_dir)[-1].counts["unet"]
    assert counted["updates"] == 6
    for name, since in counted["since"].items():
        assert since == (3 if name.startswith("levels.1.") else 0), name


def test_the_command_saves_a_pipeline(run_dir, tmp_path, caplog):
    words = ["--run_dir", str(run_dir), "--sigma_rel", "0.1", "--output_dir", str(tmp_path / "out")]
    assert average_reconstruction.run("reconstruct", [*words, "--save_dtype", "fp16"]) == 0
    average = reconstruct(read_snapshots(run_dir), 0.1)
    pipeline = MDMPipeline.from_pretrained(tmp_path / "out")
    for name, value in pipeline.unet.named_parameters():
        torch.testing.assert_close(value.detach().float(), average.weights["unet"][name], rtol=1e-3, atol=1e-5)
    for name, value in pipeline.text_encoder.named_parameters():
        torch.testing.assert_close(value.detach().float(), average.weights["text_encoder"][name], rtol=1e-3, atol=1e-5)
    assert "sigma_rel 0.1, at step 6" in (tmp_path / "out" / "README.md").read_text()
    assert (tmp_path / "out" / "run" / "README.md").read_text() == (run_dir / "README.md").read_text()
    with pytest.raises(ValueError, match="exists; choose a new folder"):
        average_reconstruction.run("reconstruct", words)


def test_what_cannot_be_made_is_refused(run_dir, tmp_path):
    output = tmp_path / "out"
    with pytest.raises(ValueError, match="no finished pipeline"):
        save_reconstructed(tmp_path, 0.1, output)
    with pytest.raises(ValueError, match="`sigma_rel` must be above 0"):
        save_reconstructed(run_dir, 0.5, output)
    with pytest.raises(ValueError, match=r"no snapshot of step 5; choose one of 2, 3, 4, 6"):
        save_reconstructed(run_dir, 0.1, output, step=5)
    with pytest.raises(ValueError, match="choose a step of the last stage"):
        save_reconstructed(run_dir, 0.1, output, step=2)
    with pytest.raises(ValueError, match="Train with --post_hoc_ema"):
        reconstruct([], 0.1)
    assert not output.exists()
    assert not list(tmp_path.iterdir())


def test_edited_counts_are_named(run_dir, tmp_path):
    folder = tmp_path / FOLDER / "snapshot-2"
    shutil.copytree(run_dir / FOLDER / "snapshot-2", folder)
    report = json.loads((folder / "snapshot.json").read_text())
    report["counts"]["unet"]["since"] = {"levels.0.encoder.conv_in.weight": 7}
    (folder / "snapshot.json").write_text(json.dumps(report))
    (folder / "manifest.json").unlink()
    write_manifest(folder)
    with pytest.raises(ValueError, match=r"snapshot\.json: `unet` has numbers that do not fit together"):
        read_snapshots(tmp_path)


@pytest.mark.slow
def test_adapters_are_averaged(run_dir, images_dir, tmp_path):
    recipe = dataclasses.replace(
        averaged_recipe(images_dir, levels=2),
        pretrained=PretrainedRecipe(str(run_dir)),
        text_encoder=TextEncoderRecipe(from_pipeline=True),
        lora=LoraRecipe(rank=2),
    )
    adapted = run_recipe(dataclasses.replace(recipe, stages=recipe.stages[-1:]), options(tmp_path / "run"))
    save_reconstructed(adapted, 0.1, tmp_path / "out")
    pipeline = MDMPipeline.from_pretrained(run_dir)
    pipeline.load_lora_weights(tmp_path / "out")
    exact = load_file(adapted / "checkpoint-3" / "power_averages.safetensors")
    for name, value in load_file(tmp_path / "out" / "pytorch_lora_weights.safetensors").items():
        kept = exact[f"unet//0.1//{name.removeprefix('unet.').replace('.weight', '.default.weight')}"]
        torch.testing.assert_close(value, kept, rtol=1e-3, atol=1e-5)
