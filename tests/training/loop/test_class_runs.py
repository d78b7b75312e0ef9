# SPDX-License-Identifier: Apache-2.0
"""Whole runs of the command for classes on tiny models: from scratch, fine-tuning, LoRA, and what it refuses."""

import dataclasses
import importlib.util
import re
import runpy
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from diffusers_mdm import DiffusionPipeline, MDMClassConditionalPipeline
from diffusers_mdm.pipelines.image_grid import GAP, MIN_CELL
from diffusers_mdm.training.commands.flags import read_command
from diffusers_mdm.training.commands.kinds import check_has_classes
from diffusers_mdm.training.commands.run_command import CLASS_CONDITIONAL
from diffusers_mdm.training.data.class_names import find_class_names
from diffusers_mdm.training.loop.engine import run_recipe
from diffusers_mdm.training.loop.start import start_run
from diffusers_mdm.training.recipe.loading import load_recipe
from diffusers_mdm.training.recipe.recipe import PretrainedRecipe, ValidationRecipe
from diffusers_mdm.training.reports.validation_grid import draw_prompts
from diffusers_mdm.training.state.run import RunOptions
from tests.pipelines.tiny_pipeline import seed
from tests.training.labelled_images import NAMES, class_recipe, save_class_pipeline, write_labelled
from tests.training.tiny_run import RECIPES

SCRIPT = Path(__file__).parents[3] / "training" / "train_class_conditional_mdm.py"
QUICK = ["--max_train_steps", "2", "--train_batch_size", "4", "--report_to", "none", "--checkpointing_steps", "100"]


@pytest.fixture(scope="module")
def named_dir(images_dir, tmp_path_factory):
    return write_labelled(images_dir, tmp_path_factory.mktemp("named"))


@pytest.fixture(scope="module")
def class_pipeline_dir(tmp_path_factory):
    return save_class_pipeline(tmp_path_factory.mktemp("saved") / "shapes", {0: "box, rectangle", 1: "ellipse"})


@pytest.fixture
def train(monkeypatch, tmp_path):
    """Run the command in this process; its output folder comes back."""
    spec = importlib.util.spec_from_file_location("train_class_conditional_mdm", SCRIPT)
    command = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(command)

    def run(*words: object, name: str = "out") -> Path:
        start = ["--output_dir", tmp_path / name, *QUICK]
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, start), *map(str, words)])
        command.main()
        return tmp_path / name

    return run


def options(output_dir: Path) -> RunOptions:
    return RunOptions(output_dir=output_dir, report_to=None, checkpointing_steps=100)


def draw(pipeline, label) -> torch.Tensor:
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(label, num_inference_steps=2, generator=seed(0), output_type="pt").images


def run_example(text: str, folder: Path, monkeypatch) -> dict:
    """Run the card's Python example in `folder` and give its variables."""
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (folder / "example.py").write_text(code)
    monkeypatch.chdir(folder)
    return runpy.run_path("example.py")


def test_the_trained_pipeline_draws_by_name(named_dir, tmp_path, monkeypatch):
    recipe = class_recipe(named_dir)
    validation = dataclasses.replace(recipe.validation, prompts=("ellipse", "2", "line"))
    stages = tuple(dataclasses.replace(stage, learning_rate=1e-2) for stage in recipe.stages)
    recipe = dataclasses.replace(recipe, validation=validation, stages=stages)
    output_dir = run_recipe(recipe, options(tmp_path / "shapes"))
    pipeline = DiffusionPipeline.from_pretrained(output_dir)
    assert isinstance(pipeline, MDMClassConditionalPipeline)
    assert pipeline.id2label == NAMES
    assert torch.equal(draw(pipeline, "ellipse"), draw(pipeline, 1))
    assert not torch.equal(draw(pipeline, "ellipse"), draw(pipeline, "line"))

    with Image.open(output_dir / "samples.png") as grid:
        cell = MIN_CELL + GAP
        assert 3 * cell < grid.width < 4 * cell

    text = (output_dir / "README.md").read_text()
    assert "0 `rectangle`, 1 `ellipse`, 2 `line`. 3 stands for none" in text
    assert "- class-conditional\n" in text
    drawn = run_example(text, tmp_path, monkeypatch)
    assert (drawn["label"], drawn["image"].size, drawn["small"].size) == ("ellipse", (16, 16), (8, 8))


def test_the_grid_shows_each_class_as_the_pipeline_draws_it(class_pipeline_dir):
    pipeline = MDMClassConditionalPipeline.from_pretrained(class_pipeline_dir)
    settings = ValidationRecipe(("ellipse", "2", "box, rectangle"), num_inference_steps=2, guidance_scale=2.0)
    levels = draw_prompts(pipeline, settings)
    assert [len(level) for level in levels] == [3, 3]
    expected = pipeline(
        [1, 2, 0], num_inference_steps=2, guidance_scale=2.0, generator=[seed(number) for number in range(3)]
    ).images
    assert [image.tobytes() for image in levels[1]] == [image.tobytes() for image in expected]
    assert levels[1][0].tobytes() != levels[1][1].tobytes()


def test_fine_tuning_keeps_the_names(train, class_pipeline_dir, named_dir):
    words = ["--pretrained_model_name_or_path", class_pipeline_dir, "--train_data_dir", named_dir]
    words += ["--label_column", "kind", "--learning_rate", "1e-3", "--validation_prompts", "box", "2"]
    output_dir = train(*words)
    pipeline = MDMClassConditionalPipeline.from_pretrained(output_dir)
    assert pipeline.id2label == {0: "box, rectangle", 1: "ellipse", 2: "line"}  # the data names the third one
    before, after = (
        load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
        for folder in (class_pipeline_dir, output_dir)
    )
    assert before.keys() == after.keys()
    assert not torch.equal(before["class_embedding.weight"], after["class_embedding.weight"])
    assert list((output_dir / "samples").glob("*.png"))


def test_lora_adapts_a_pipeline_of_classes(train, class_pipeline_dir, named_dir, tmp_path, monkeypatch):
    words = ["--pretrained_model_name_or_path", class_pipeline_dir, "--train_data_dir", named_dir]
    output_dir = train(*words, "--label_column", "kind", "--learning_rate", "1e-1", "--rank", "2", name="lora")
    pipeline = MDMClassConditionalPipeline.from_pretrained(class_pipeline_dir)
    plain = draw(pipeline, "box")
    pipeline.load_lora_weights(output_dir)
    assert not torch.allclose(draw(pipeline, "box"), plain, atol=1e-3)
    assert pipeline.id2label[0] == "box, rectangle"

    (tmp_path / "shapes").symlink_to(class_pipeline_dir)
    drawn = run_example((output_dir / "README.md").read_text(), tmp_path, monkeypatch)
    assert drawn["label"] == 0
    assert drawn["pipe"].get_active_adapters()


# --- refused ---


def test_a_recipe_without_classes_is_refused(train, pipeline_dir, images_dir, capsys):
    with pytest.raises(SystemExit):
        train("--recipe", RECIPES / "tiny.yaml")
    error = capsys.readouterr().err
    assert "'tiny' has no classes: set `model.num_class_embeds`" in error
    assert error.count("\n") == 1
    with pytest.raises(SystemExit):
        train("--pretrained_model_name_or_path", pipeline_dir, "--train_data_dir", images_dir)
    assert "tiny-model has no classes: train it on captions" in capsys.readouterr().err


def test_classes_are_asked_for_by_the_other_command(class_pipeline_dir, named_dir, capsys):
    words = ["--pretrained_model_name_or_path", class_pipeline_dir, "--train_data_dir", named_dir]
    words += ["--output_dir", "x", "--max_train_steps", 2]
    with pytest.raises(SystemExit):
        read_command(list(map(str, words)))
    assert "name the column with the classes with --label_column" in capsys.readouterr().err
    recipe, run_options, _ = read_command(list(map(str, words)), CLASS_CONDITIONAL)
    assert (recipe.data.label_column, run_options.tracker_project_name) == ("label", "class2image-mdm")


def test_a_validation_prompt_that_is_no_class_ends_the_run_before_it_trains(named_dir, tmp_path):
    recipe = class_recipe(named_dir)
    recipe = dataclasses.replace(recipe, validation=dataclasses.replace(recipe.validation, prompts=("elipse",)))
    with pytest.raises(ValueError, match=r"`validation\.prompts` .*'elipse'; did you mean 'ellipse'"):
        start_run(recipe, options(tmp_path))


def test_an_image_of_a_class_that_the_model_lacks_is_refused(images_dir, tmp_path):
    folder = write_labelled(images_dir, tmp_path / "data", names=None, first=1)
    with pytest.raises(ValueError, match="A sample has class 3, but the model has the classes 0 to 2"):
        run_recipe(class_recipe(folder), options(tmp_path / "out"))
    recipe = class_recipe(folder)
    held_out = write_labelled(images_dir, tmp_path / "both", names=None)
    (folder / "train.parquet").rename(held_out / "test.parquet")
    data = dataclasses.replace(recipe.data, path=str(held_out), validation_split="test")
    with pytest.raises(ValueError, match="A sample has class 3"):
        run_recipe(dataclasses.replace(recipe, data=data), options(tmp_path / "held-out"))


def test_a_pipeline_with_other_classes_is_refused(class_pipeline_dir, named_dir, tmp_path):
    recipe = class_recipe(named_dir, num_class_embeds=9, pretrained=PretrainedRecipe(str(class_pipeline_dir)))
    with pytest.raises(ValueError, match="of the recipe is 9, but the pipeline that it starts from has 4"):
        start_run(recipe, options(tmp_path))


# --- the shipped recipe ---


def test_the_shipped_recipe_trains_the_styles():
    recipe = load_recipe(RECIPES / "emoji_styles_class.yaml")
    check_has_classes(recipe)
    names = find_class_names(recipe)
    assert recipe.validation.prompts == tuple(names.values()) == ("fluent-3d", "fluent-flat", "twemoji", "noto")
