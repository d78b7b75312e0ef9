# SPDX-License-Identifier: Apache-2.0
"""`diffusers-mdm generate` from words to files."""

import json

import numpy as np
import pytest
from PIL import Image

from diffusers_mdm.cli.generate import build_parser, run
from diffusers_mdm.cli.generating.generate_flags import CALL_FLAGS
from diffusers_mdm.cli.main import main
from diffusers_mdm.pipelines import MDMPipeline
from tests.pipelines.tiny_tasks import task as tiny_task

FAST = ("--num_inference_steps", 2, "--guidance_scale", 2)


def generate(model, *words: object) -> int:
    return main(["generate", str(model), *map(str, words)])


def pixels(path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image).astype(int)


def test_a_file_depends_on_its_prompt_seed_and_settings(model_dir, tmp_path, capsys):
    words = ["--prompts", "a red apple", "the blue cat", "--num_images", 2, "--seed", 7, *FAST]
    assert generate(model_dir, *words, "--output_dir", tmp_path / "a", "--batch_size", 4) == 0
    assert generate(model_dir, *words, "--output_dir", tmp_path / "b", "--batch_size", 1, "--name", "{seed}") == 0
    first = sorted((tmp_path / "a").iterdir())
    assert [path.name for path in first] == [
        "000-a_red_apple.png",
        "001-a_red_apple.png",
        "002-the_blue_cat.png",
        "003-the_blue_cat.png",
    ]
    for seed, path in zip(range(7, 11), first, strict=True):
        # Other sizes of a batch sum in another order, which may round a value the other way.
        assert np.abs(pixels(path) - pixels(tmp_path / "b" / f"{seed}.png")).max() <= 1
        with Image.open(path) as image:
            about = json.loads(image.text["parameters"])
        assert (about["seed"], about["num_inference_steps"], about["guidance_scale"]) == (seed, 2, 2.0)
    assert np.abs(pixels(first[0]) - pixels(first[1])).max() > 8
    assert f"Wrote {first[0]}\n" in capsys.readouterr().out


def test_every_level_and_a_grid(model_dir, tmp_path):
    words = ["--prompts_file", tmp_path / "prompts.txt", "--all_levels", "--grid", tmp_path / "grid" / "all.png"]
    words += ["--solver", "dpmsolver++", "--timestep_spacing", "log_snr", "--guidance_scale", 2, 1.5]
    words += ["--guider", '{"name": "interval", "low": -4}', "--num_inner_steps", 1, "--num_inference_steps", 1]
    (tmp_path / "prompts.txt").write_text("a red apple\n\n  the cat \n", encoding="utf-8")
    assert generate(model_dir, *words, "--output_dir", tmp_path / "out") == 0
    sizes = {path.name: Image.open(path).size for path in (tmp_path / "out").iterdir()}
    assert sizes == {
        "000-a_red_apple-8.png": (8, 8),
        "000-a_red_apple-16.png": (16, 16),
        "001-the_cat-8.png": (8, 8),
        "001-the_cat-16.png": (16, 16),
    }
    assert Image.open(tmp_path / "grid" / "all.png").width > 2 * 128


def test_height_chooses_the_level(model_dir, tmp_path):
    words = ["--prompts", "a red apple", "--height", 8, "--format", "jpg", "--output_dir", tmp_path, *FAST]
    assert generate(model_dir, *words, "--negative_prompt", "a dog") == 0
    assert Image.open(tmp_path / "000-a_red_apple.jpg").size == (8, 8)


@pytest.mark.parametrize("task", ["class", "video", "unconditional"])
def test_classes_and_clips(task, tmp_path):
    tiny_task(task).make().save_pretrained(tmp_path / "model")
    flags = {
        "class": ["--classes", "dog", "2", "--guidance_scale", 2],
        "video": ["--prompts", "a red apple", "--all_levels"],
        "unconditional": ["--num_images", 3, "--batch_size", 2],
    }[task]
    words = [*flags, "--num_inference_steps", 2, "--output_dir", tmp_path / "out"]
    assert generate(tmp_path / "model", *words) == 0
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    if task == "class":
        assert names == ["000-dog.png", "001-2.png"]
        return
    if task == "unconditional":
        assert names == ["000-image.png", "001-image.png", "002-image.png"]
        assert generate(tmp_path / "model", *words, "--guidance_scale", 2) == 1
        return
    # The innermost level has one frame, the next ones four, of which the first has the same side.
    assert names == ["000-a_red_apple-16.webp", "000-a_red_apple-8x1.webp", "000-a_red_apple-8x4.webp"]
    assert Image.open(tmp_path / "out" / names[0]).n_frames == 4


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "This model generates from prompts: pass --prompts."),
        (("--classes", "dog"), "this model takes no classes"),
        (("--prompts", "a", "--format", "mp4"), "--format mp4 is for clips"),
        (("--prompts", "a", "--name", "../{index}"), "is not a file name"),
        (("--prompts", "a", "--name", "{prompt.__class__}"), "expected fields out of {index}"),
        (("--prompts", "a", "b", "--name", "same"), "gives several files the same name"),
        (("--prompts", "a", "--solver", "euler"), "`algorithm` is 'euler'; expected one of"),
        (("--prompts", "a", "--guider", "none"), "`guider` is 'none'; expected one of"),
        (("--prompts", "a", "--height", "12"), "12"),
        (("--prompts_file", "nowhere.txt"), "nowhere.txt"),
    ],
)
def test_mistakes_are_one_line_and_leave_no_folder(words, message, model_dir, tmp_path, capsys):
    assert generate(model_dir, *words, "--output_dir", tmp_path / "out") == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("diffusers-mdm generate: error: ")
    assert message in error
    assert not (tmp_path / "out").exists()


def test_nothing_is_replaced_unless_asked(model_dir, tmp_path, capsys):
    words = ["--prompts", "a", "--name", "x", "--output_dir", tmp_path, *FAST]
    (tmp_path / "x.png").write_bytes(b"mine")
    assert generate(model_dir, *words) == 1
    assert "exists already" in capsys.readouterr().err
    assert (tmp_path / "x.png").read_bytes() == b"mine"
    assert generate(model_dir, *words, "--overwrite") == 0
    assert Image.open(tmp_path / "x.png").size == (16, 16)


@pytest.mark.parametrize(
    "words", [("--prompts", "a", "--prompts_file", "b"), ("--guider", "{1"), ("--lora_scale", "1")]
)
def test_flags_that_contradict_are_usage_errors(words, capsys):
    with pytest.raises(SystemExit) as ended:
        run("generate", ["model", *words])
    assert ended.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_flags_are_arguments_of_the_call():
    import inspect

    known = inspect.signature(MDMPipeline.__call__).parameters
    flags = vars(build_parser("generate").parse_args(["model"]))
    assert set(CALL_FLAGS) <= set(known)
    assert set(CALL_FLAGS) <= set(flags)
