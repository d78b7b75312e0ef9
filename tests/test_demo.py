# SPDX-License-Identifier: Apache-2.0
"""The demo draws a labelled grid with a saved pipeline, at the settings of its folder."""

import pytest
import torch
from PIL import Image

from diffusers_mdm import MDMPipeline, demo
from diffusers_mdm.models.level_config import LevelConfig
from diffusers_mdm.pipelines.image_grid import MIN_CELL
from tests.pipelines.conftest import make_pipeline
from tests.pipelines.tiny_pipeline import make_scheduler


@pytest.fixture
def model_folder(tmp_path):
    folder = tmp_path / "model"
    make_pipeline().save_pretrained(folder)
    return folder


def test_prompts_are_split_at_semicolons_only():
    assert demo.split_prompts("red apple; sad cat, flat icon ;;") == ["red apple", "sad cat, flat icon"]


@pytest.mark.parametrize("text", ["", " ; "])
def test_no_prompt_is_an_error(text):
    with pytest.raises(ValueError, match="semicolons"):
        demo.split_prompts(text)


def test_missing_folder_is_explained(tmp_path):
    with pytest.raises(ValueError, match=r"does not exist.*--model"):
        demo.load_pipeline(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"model_index\.json"):
        demo.load_pipeline(tmp_path)


def test_missing_folder_ends_the_command_without_a_traceback(tmp_path):
    with pytest.raises(SystemExit, match=r"error: .*nowhere"):
        demo.main(["--model", str(tmp_path / "nowhere"), "--output", str(tmp_path / "demo.png")])


def test_half_precision_weights_are_drawn_in_float32(tmp_path):
    make_pipeline().to(torch.float16).save_pretrained(tmp_path)
    pipeline = demo.load_pipeline(tmp_path)
    assert pipeline.unet.dtype == pipeline.text_encoder.dtype == torch.float32


def test_the_demo_runs_on_the_accelerator_that_there_is(monkeypatch):
    for cuda, mps, expected in ((True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda found=cuda: found)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda found=mps: found)
        assert demo.parse_args([]).device == expected


def test_settings_are_those_of_the_folder_unless_asked_for():
    assert demo.parse_args([]).num_inference_steps is demo.parse_args([]).guidance_scale is None
    pipeline = MDMPipeline(**make_pipeline().components, drawing_defaults={"num_inference_steps": 2})
    demo.draw_pyramid(pipeline, ["dog"])
    assert pipeline.num_timesteps == 2


def test_command_writes_the_grid_and_says_where(model_folder, tmp_path, capsys):
    output = tmp_path / "deep" / "demo.png"
    options = ["--prompts", "a red apple;sad cat;dog", "--num_inference_steps", "2", "--seed", "3"]
    demo.main(["--model", str(model_folder), "--output", str(output), "--device", "cpu", *options])
    said = capsys.readouterr().out
    assert f"Wrote {output}" in said
    assert "3 images at 8 px, 16 px" in said
    with Image.open(output) as grid:
        assert grid.width > 3 * MIN_CELL
        assert grid.height > 2 * MIN_CELL


@pytest.mark.parametrize(("num_levels", "sizes"), [(1, "8 px"), (3, "8 px, 16 px, 64 px")])
def test_every_level_has_its_row(num_levels, sizes, tmp_path, capsys):
    pipeline = make_pipeline()
    patches = LevelConfig((8,), (1,), (0,), norm_num_groups=4, patch_size=4)
    unet = pipeline.unet.inner_model(1) if num_levels == 1 else pipeline.unet.add_level(patches)
    scheduler = make_scheduler(prediction_type=["v_prediction", "sample", "sample"][:num_levels])
    MDMPipeline(**{**pipeline.components, "unet": unet, "scheduler": scheduler}).save_pretrained(tmp_path)
    options = [
        "--prompts",
        "dog",
        "--num_inference_steps",
        "1",
        "--device",
        "cpu",
        "--output",
        str(tmp_path / "a.png"),
    ]
    demo.main(["--model", str(tmp_path), *options])
    assert f"1 images at {sizes}:" in capsys.readouterr().out
    with Image.open(tmp_path / "a.png") as grid:
        assert (grid.height - MIN_CELL * num_levels) < MIN_CELL


def test_image_depends_on_its_own_seed_only():
    pipeline = make_pipeline()
    together = demo.draw_pyramid(pipeline, ["a red apple", "sad cat"], seed=5, num_inference_steps=2)
    alone = demo.draw_pyramid(pipeline, ["sad cat"], seed=6, num_inference_steps=2)
    for level, single in zip(together, alone, strict=True):
        difference = [abs(a - b) for a, b in zip(level[1].tobytes(), single[0].tobytes(), strict=True)]
        assert max(difference) <= 1  # batches of other sizes may round differently
