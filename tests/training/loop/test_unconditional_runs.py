# SPDX-License-Identifier: Apache-2.0
"""Whole runs of an unconditional model on a folder of images: result, card, resuming, fine-tuning, evaluation."""

import dataclasses
import json
import re
import runpy
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from diffusers_mdm import DiffusionPipeline, MDMUnconditionalPipeline, MDMVideoPipeline
from diffusers_mdm.training.commands.dry_run import describe_run
from diffusers_mdm.training.commands.evaluation.flags import build_parser, parse_arguments
from diffusers_mdm.training.commands.evaluation.measure import chosen_metrics
from diffusers_mdm.training.commands.evaluation.verbs import run_verb
from diffusers_mdm.training.commands.flags import read_command
from diffusers_mdm.training.commands.run_command import UNCONDITIONAL
from diffusers_mdm.training.loop.engine import run_recipe
from diffusers_mdm.training.loop.start import start_run
from diffusers_mdm.training.modules.classes import is_unconditional, pipeline_class
from diffusers_mdm.training.recipe.loading import load_recipe, without_unseen_captions
from diffusers_mdm.training.recipe.recipe import PretrainedRecipe
from diffusers_mdm.training.reports.card_example import usage
from diffusers_mdm.training.state.run import RunOptions
from tests.training.loop.run_folders import NOTHING_BESIDE
from tests.training.plain_images import plain_recipe, write_plain
from tests.training.tiny_run import RECIPES

WEIGHTS = Path("unet") / "diffusion_pytorch_model.safetensors"


def options(output_dir: Path, **fields) -> RunOptions:
    settings = {"report_to": None, "checkpointing_steps": 2, "checkpoints_total_limit": None}
    return RunOptions(output_dir=output_dir, **{**settings, **fields})


@pytest.fixture(scope="module")
def plain_dir(tmp_path_factory):
    return write_plain(tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def finished(plain_dir, tmp_path_factory):
    return run_recipe(plain_recipe(plain_dir), options(tmp_path_factory.mktemp("runs") / "plain"))


def evaluate(*words):
    run_verb(parse_arguments(build_parser("Measure.", "evaluate"), [str(word) for word in words]))


def test_the_result_is_a_pipeline_of_two_components(finished):
    index = json.loads((finished / "model_index.json").read_text())
    assert {name for name, value in index.items() if isinstance(value, list) and value[0]} == {"unet", "scheduler"}
    assert not (finished / "text_encoder").exists()
    pipeline = DiffusionPipeline.from_pretrained(finished)
    assert type(pipeline) is MDMUnconditionalPipeline
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline(batch_size=2, num_inference_steps=2, output_type="pt").images.shape == (2, 3, 16, 16)


def test_samples_have_their_seeds_and_the_card_says_so(finished, tmp_path, monkeypatch):
    with Image.open(finished / "samples.png") as grid:
        assert grid.width > grid.height / 2  # two columns of two levels
    text = (finished / "README.md").read_text()
    header = yaml.safe_load(text.split("---\n")[1])
    assert header["pipeline_tag"] == "unconditional-image-generation"
    assert "class-conditional" not in header["tags"]
    assert "The samples of seeds 0 to 1, generated with" in text
    assert "without captions" in text
    assert "prompt" not in text
    assert "guidance" not in text
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (tmp_path / "example.py").write_text(code)
    monkeypatch.chdir(finished.parent)
    drawn = runpy.run_path(str(tmp_path / "example.py"))
    assert (drawn["image"].size, drawn["small"].size) == ((16, 16), (8, 8))


def test_a_resumed_run_has_the_same_weights(finished, plain_dir, tmp_path):
    shutil.copytree(finished, tmp_path / "again")
    shutil.rmtree(tmp_path / "again" / "checkpoint-4")
    run_recipe(plain_recipe(plain_dir), options(tmp_path / "again", **NOTHING_BESIDE))
    first, again = load_file(finished / WEIGHTS), load_file(tmp_path / "again" / WEIGHTS)
    assert all(torch.equal(first[name], again[name]) for name in first)


@pytest.mark.parametrize("more", [[], ["--rank", "2"]], ids=["all weights", "lora"])
def test_fine_tuning_without_a_recipe(finished, plain_dir, tmp_path, more):
    words = ["--pretrained_model_name_or_path", finished, "--train_data_dir", plain_dir, "--output_dir", tmp_path]
    words += ["--max_train_steps", 1, "--train_batch_size", 2, "--learning_rate", "1e-1", "--logger", "none", *more]
    recipe, run_options, _ = read_command(list(map(str, words)), UNCONDITIONAL)
    assert run_options.tracker_project_name == "unconditional-mdm"
    assert is_unconditional(recipe)
    run_recipe(recipe, run_options)
    if more:
        pipeline = MDMUnconditionalPipeline.from_pretrained(finished)
        pipeline.load_lora_weights(tmp_path)
        assert pipeline.get_active_adapters()
    else:
        before, after = load_file(finished / WEIGHTS), load_file(tmp_path / WEIGHTS)
        assert before.keys() == after.keys()
        assert any(not torch.equal(before[name], after[name]) for name in before)


def test_what_is_generated_is_evaluated_without_captions(finished, plain_dir, pipeline_dir, tmp_path):
    words = ["--num_inference_steps", 1, "--num_images", 3]
    evaluate("generate", "--model_dir", finished, *words, "--output_dir", tmp_path / "drawn")
    assert len(list((tmp_path / "drawn" / "16").glob("*.png"))) == 3
    evaluate("samples", "--model_dir", finished, "--num_inference_steps", 1, "--output", tmp_path / "sheet.png")
    reference = ["--data_dir", plain_dir, "--no_captions", "--sides", 8, 16, "--features"]
    evaluate("reference", *reference, "--output_dir", tmp_path / "real")
    score = ["--drawings", tmp_path / "drawn", "--reference", tmp_path / "real", "--metrics", "fid", "retrieval"]
    with pytest.raises(ValueError, match="'retrieval' needs the captions"):
        evaluate("score", *score)
    for model, extra, message in (
        (finished, ["--prompts", "a cat"], "an unconditional model, which takes no captions"),
        (finished, ["--guidance_scale", 2], "omit --guidance_scale"),
        (pipeline_dir, [], "Give the captions by --prompts, --captions_file or --data_dir"),
    ):
        with pytest.raises(ValueError, match=message):
            evaluate("samples", "--model_dir", model, *extra, "--output", tmp_path / "no.png")
    with pytest.raises(ValueError, match="Give the captions by --captions_file or"):
        evaluate("generate", "--model_dir", pipeline_dir, "--num_images", 2, "--output_dir", tmp_path / "no")
    for wrong in (["--num_images", 0], ["--num_images", 2, "--data_dir", plain_dir]):
        with pytest.raises(ValueError, match="--num_images is"):
            evaluate("generate", "--model_dir", finished, *wrong, "--output_dir", tmp_path / "no")


@pytest.mark.slow
def test_fid_and_kid_need_no_captions(finished, plain_dir, tmp_path):
    """Fifty images of each kind, which is the fewest that the metrics take."""
    real = tmp_path / "images"
    for number in range(9):
        write_plain(real / str(number))
    words = ["--num_inference_steps", 1, "--num_images", 50]
    evaluate("generate", "--model_dir", finished, *words, "--output_dir", tmp_path / "drawn")
    features = ["--data_dir", real, "--no_captions", "--sides", 8, 16, "--features", "inception"]
    evaluate("reference", *features, "--output_dir", tmp_path / "real")
    score = ["--drawings", tmp_path / "drawn", "--reference", tmp_path / "real", "--metrics", "fid", "kid"]
    evaluate("score", *score, "--output", tmp_path / "score.json")
    levels = json.loads((tmp_path / "score.json").read_text())["levels"]
    assert levels.keys() == {"8", "16"}
    for values in levels.values():
        assert values["fid"] > 0
        assert "kid" in values


@pytest.mark.slow
def test_fid_and_kid_are_measured_during_training(tmp_path):
    """On every level that is trained, and told by the card."""
    data = tmp_path / "images"
    for split in ("train", "validation"):
        for number in range(9):
            write_plain(data / split / str(number))
    recipe = plain_recipe(data)
    validation = dataclasses.replace(recipe.validation, metrics=("fid", "kid"), num_metric_images=50)
    recipe = dataclasses.replace(
        recipe,
        validation=dataclasses.replace(validation, num_inference_steps=1),
        data=dataclasses.replace(recipe.data, validation_split="validation"),
    )
    run_recipe(recipe, options(tmp_path / "run", validation_steps=2))
    lines = [json.loads(line) for line in (tmp_path / "run" / "history.jsonl").read_text().splitlines()]
    measured = {name for line in lines for name in line if name.startswith(("validation_fid", "validation_kid"))}
    assert measured >= {f"validation_{name}/{side}px" for name in ("fid", "kid") for side in (8, 16)}
    card = (tmp_path / "run" / "README.md").read_text()
    assert "An unconditional Matryoshka diffusion model" in card
    assert "| metric | 8 pixels | 16 pixels |" in card


def test_metrics_suit_the_images():
    words = ["score", "--drawings", "a", "--reference", "b"]
    args = parse_arguments(build_parser("Measure.", "evaluate"), words)
    assert "retrieval" in chosen_metrics(args, numbered=False)
    assert chosen_metrics(args, numbered=True) == ["fid", "kid", "precision_recall"]


def test_the_shipped_recipe_ignores_the_captions_of_its_data():
    recipe = load_recipe(RECIPES / "emoji_unconditional.yaml")
    assert (is_unconditional(recipe), pipeline_class(recipe)) == (True, MDMUnconditionalPipeline)
    assert recipe.data.caption == ""


def test_a_dry_run_counts_what_there_is(plain_dir, no_forward):
    text = describe_run(plain_recipe(plain_dir))
    assert "shared by the levels (text, classes): 0 parameters" in text
    assert "text encoder: none in memory" in text


# --- refused ---


def test_settings_of_captions_are_refused(plain_dir):
    recipe = plain_recipe(plain_dir)
    for changes, message in (
        ({"data": dataclasses.replace(recipe.data, caption="a cat")}, r"`data\.caption` is 'a cat', but the model"),
        ({"data": dataclasses.replace(recipe.data, embeddings_dir="x")}, r"`data\.embeddings_dir` has features"),
        ({"validation": dataclasses.replace(recipe.validation, prompts=("a cat",))}, r"`validation\.prompts` cannot"),
        ({"text_encoder": load_recipe(RECIPES / "tiny.yaml").text_encoder}, r"`model\.cross_attention_dim` must"),
    ):
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(recipe, **changes)


@pytest.mark.parametrize("name", ["clip", "retrieval"])
def test_metrics_of_captions_are_refused(plain_dir, tmp_path, name):
    recipe = plain_recipe(plain_dir)
    validation = dataclasses.replace(recipe.validation, metrics=(name,))
    with pytest.raises(ValueError, match=f"'{name}', which compares images with captions"):
        start_run(dataclasses.replace(recipe, validation=validation), options(tmp_path))


def test_a_pipeline_with_text_is_no_start(pipeline_dir, plain_dir, tmp_path, capsys):
    words = ["--pretrained_model_name_or_path", pipeline_dir, "--train_data_dir", plain_dir, "--output_dir", "x"]
    with pytest.raises(SystemExit):
        read_command(list(map(str, words)), UNCONDITIONAL)
    assert "has captions" in capsys.readouterr().err
    recipe = plain_recipe(plain_dir, pretrained=PretrainedRecipe(str(pipeline_dir)))
    with pytest.raises(ValueError, match="starts from takes text, but the model of the recipe does not"):
        start_run(recipe, options(tmp_path))


def test_video_models_need_no_conditions_either(tmp_path):
    recipe = load_recipe(RECIPES / "tiny_video.yaml")
    model = {key: value for key, value in recipe.model.items() if not key.startswith(("cross_", "encoder_"))}
    validation = dataclasses.replace(recipe.validation, prompts=(), num_validation_images=2)
    recipe = dataclasses.replace(recipe, model=model, text_encoder=None, validation=validation)
    recipe = without_unseen_captions(recipe)
    assert pipeline_class(recipe) is MDMVideoPipeline
    assert "frames = pipe(num_inference_steps=" in usage(recipe, "model")
