# SPDX-License-Identifier: Apache-2.0
import shutil

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tiny_run import tiny_recipe

from diffusers_mdm import MDMPipeline
from diffusers_mdm.pipelines.picture_grid import GAP, MIN_CELL
from diffusers_mdm.training.checkpoints import list_checkpoints
from diffusers_mdm.training.engine import run_recipe
from diffusers_mdm.training.run import RunOptions
from diffusers_mdm.training.summary import describe_run


def options(output_dir, **fields) -> RunOptions:
    return RunOptions(
        output_dir=output_dir, report_to=None, checkpointing_steps=2, checkpoints_total_limit=10, **fields
    )


def weights(folder) -> dict[str, torch.Tensor]:
    parts = {"unet": "diffusion_pytorch_model", "text_encoder": "model"}
    return {
        f"{part}.{name}": value
        for part, stem in parts.items()
        for name, value in load_file(folder / part / f"{stem}.safetensors").items()
    }


@pytest.fixture(scope="module")
def finished(pictures_dir, tmp_path_factory):
    """A whole run of two stages, four steps each, with a checkpoint every second step."""
    output_dir = tmp_path_factory.mktemp("finished")
    run_recipe(tiny_recipe(pictures_dir), options(output_dir))
    return output_dir


def test_a_run_saves_checkpoints_samples_and_a_pipeline(finished):
    assert [path.name for path in list_checkpoints(finished)] == [f"checkpoint-{step}" for step in (2, 4, 6, 8)]
    samples = sorted((finished / "samples").glob("*.png"))
    assert len(samples) == 4
    # One more row of pictures for the second level.
    heights = [Image.open(path).height for path in samples]
    assert heights[-1] - heights[0] == MIN_CELL + GAP
    assert (finished / "recipe.json").is_file()
    pipeline = MDMPipeline.from_pretrained(finished)
    assert pipeline.unet.sample_sizes == (8, 16)
    picture = pipeline("red line", num_inference_steps=2, generator=torch.Generator().manual_seed(0)).images[0]
    assert picture.size == (16, 16)


@pytest.mark.parametrize("step", [2, 4, 6, 8], ids=lambda step: f"stopped-after-{step}")
def test_resumed_runs_end_bit_for_bit_where_uninterrupted_ones_do(finished, pictures_dir, tmp_path, step):
    """Within a stage, at the stage boundary, after growth, and when there was nothing left to do."""
    shutil.copytree(finished / f"checkpoint-{step}", tmp_path / f"checkpoint-{step}")
    run_recipe(tiny_recipe(pictures_dir), options(tmp_path))
    expected, resumed = weights(finished), weights(tmp_path)
    assert expected.keys() == resumed.keys()
    assert all(torch.equal(value, resumed[name]) for name, value in expected.items())


def test_unfinished_checkpoints_are_not_resumed_from(finished, pictures_dir, tmp_path):
    shutil.copytree(finished / "checkpoint-2", tmp_path / "checkpoint-2")
    shutil.copytree(finished / "checkpoint-6", tmp_path / ".unfinished-checkpoint-6")
    shutil.copytree(finished / "checkpoint-6", tmp_path / "checkpoint-6", ignore=shutil.ignore_patterns("*.json"))
    assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint-2"]


def test_old_checkpoints_make_room(pictures_dir, tmp_path):
    limited = RunOptions(output_dir=tmp_path, report_to=None, checkpointing_steps=1, checkpoints_total_limit=2)
    run_recipe(tiny_recipe(pictures_dir), limited)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint-7", "checkpoint-8"]


def test_half_precision_is_saved_when_asked(finished, pictures_dir, tmp_path):
    shutil.copytree(finished / "checkpoint-8", tmp_path / "checkpoint-8")
    run_recipe(tiny_recipe(pictures_dir), options(tmp_path, save_dtype="fp16"))
    exact = weights(finished)
    for name, value in weights(tmp_path).items():
        assert value.dtype == torch.float16
        assert torch.equal(value, exact[name].half())
    pipeline = MDMPipeline.from_pretrained(tmp_path)
    assert pipeline("red line", num_inference_steps=1, output_type="np").images.shape == (1, 16, 16, 3)


def test_max_train_steps_limits_every_stage(pictures_dir, tmp_path):
    run_recipe(tiny_recipe(pictures_dir), options(tmp_path, max_train_steps=1))
    assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint-1", "checkpoint-2"]


def test_summary_tells_stages_and_sizes(pictures_dir):
    summary = describe_run(tiny_recipe(pictures_dir))
    assert "level 1: 16 pixels" in summary
    assert "stage outer: levels 0-1, 16 pixels, 4 steps x 8 = 32 images" in summary
    assert "rows per level [4, 2]" in summary
