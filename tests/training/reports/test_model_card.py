# SPDX-License-Identifier: Apache-2.0
import dataclasses
import re
import runpy
import shutil

import pytest
import torch
import yaml
from PIL import Image

from diffusers_mdm.training.commands.fine_tuning import recipe_for_pipeline
from diffusers_mdm.training.loop.engine import run_recipe
from diffusers_mdm.training.loop.start import resume_run, start_run
from diffusers_mdm.training.recipe.data import DataRecipe
from diffusers_mdm.training.recipe.recipe import LoraRecipe, PretrainedRecipe
from diffusers_mdm.training.recipe.text_encoder import TextEncoderRecipe
from diffusers_mdm.training.reports import model_card
from diffusers_mdm.training.reports.card_example import usage
from diffusers_mdm.training.reports.model_card import card_data, classes_text, data_text, write_model_card
from diffusers_mdm.training.state.run import RunOptions
from tests.training.tiny_run import tiny_recipe


def options(output_dir, **fields) -> RunOptions:
    settings = {"report_to": None, "checkpointing_steps": 4, "logging_steps": 1}
    return RunOptions(output_dir=output_dir, **{**settings, **fields})


def front_matter(text: str) -> dict:
    return yaml.safe_load(text.split("---\n")[1])


def run_example(text: str, folder, monkeypatch) -> dict:
    """Run the card's Python example in `folder` and give its variables."""
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (folder / "example.py").write_text(code)
    monkeypatch.chdir(folder)
    return runpy.run_path("example.py")


@pytest.fixture(scope="module")
def finished(images_dir, tmp_path_factory):
    output_dir = tmp_path_factory.mktemp("runs") / "my-model"
    run_recipe(tiny_recipe(images_dir), options(output_dir, license="mit"))
    return output_dir


@pytest.fixture
def again(finished, images_dir, tmp_path):
    """The finished run once more, in a folder of its own, with nothing left to train."""
    shutil.copytree(finished, tmp_path / "again")
    run = start_run(tiny_recipe(images_dir), options(tmp_path / "again"))
    resume_run(run)
    return run


def test_metadata_says_what_the_hub_asks(finished):
    header = front_matter((finished / "README.md").read_text())
    assert header["library_name"] == "diffusers"
    assert header["pipeline_tag"] == "text-to-image"
    assert header["license"] == "mit"
    assert {"text-to-image", "diffusers-mdm"} <= set(header["tags"])
    assert not {"base_model", "datasets", "instance_prompt"} & set(header)


def test_card_tells_what_was_trained_and_why_it_ended(finished):
    text = (finished / "README.md").read_text()
    assert "| `inner` | 8 | 4 | 16 | 4 | 0.001, cosine | all its steps were done |" in text
    assert "| `outer` | 8, 16 | 4 | 32 | 8 | 0.001, cosine | all its steps were done |" in text
    assert re.search(r"^\| 1 \| 16 \| \d+\.\d+ \| – \|$", text, re.MULTILINE)
    assert "recipe.json" in text
    assert "trained from scratch, for images of 8 and 16 pixels" in text


def test_images_of_the_card_are_there(finished):
    text = (finished / "README.md").read_text()
    assert re.findall(r"!\[.*\]\((.*)\)", text) == ["samples.png", "curves.png"]
    assert (finished / "samples.png").read_bytes() == (finished / "samples" / "step-0000008.png").read_bytes()
    with Image.open(finished / "curves.png") as curves:
        assert curves.width > 500


def test_nothing_names_folders_of_this_machine(finished, images_dir):
    for name in ("README.md", "recipe.json"):
        text = (finished / name).read_text()
        assert str(finished.parent) not in text
        assert str(images_dir) not in text


def test_example_of_a_pipeline_draws(finished, monkeypatch):
    drawn = run_example((finished / "README.md").read_text(), finished.parent, monkeypatch)
    assert drawn["prompt"] == "frog, 3d render"
    assert drawn["image"].size == (16, 16)
    assert drawn["small"].size == (8, 8)
    assert (finished.parent / "image.png").is_file()


def test_example_of_lora_weights_draws_with_them(images_dir, pipeline_dir, tmp_path, monkeypatch):
    shutil.copytree(pipeline_dir, tmp_path / "base")
    data = DataRecipe(path=str(images_dir), caption='a "red" cat')
    recipe = recipe_for_pipeline(PretrainedRecipe(str(tmp_path / "base")), data, steps=2)
    recipe = dataclasses.replace(recipe, lora=LoraRecipe(rank=2))
    stages = tuple(dataclasses.replace(stage, batch_size=2, learning_rate=0.1) for stage in recipe.stages)
    run_recipe(dataclasses.replace(recipe, stages=stages), options(tmp_path / "my-lora"))
    text = (tmp_path / "my-lora" / "README.md").read_text()
    header = front_matter(text)
    assert {"lora", "dreambooth"} <= set(header["tags"])
    assert header["instance_prompt"] == 'a "red" cat'
    assert "license" not in header
    assert "LoRA weights of rank 2 for the Matryoshka diffusion model `base`" in text
    assert str(tmp_path) not in text
    drawn = run_example(text, tmp_path, monkeypatch)
    pipe = drawn["pipe"]
    assert pipe.get_active_adapters()

    def draw():
        generator = torch.Generator().manual_seed(0)
        return pipe(drawn["prompt"], num_inference_steps=1, generator=generator, output_type="pt").images

    adapted = draw()
    pipe.unload_lora_weights()
    assert not torch.equal(adapted, draw())


def test_names_of_the_hub_are_metadata(images_dir):
    recipe = tiny_recipe(images_dir)
    data = dataclasses.replace(recipe.data, path="someone/pictures")
    recipe = dataclasses.replace(recipe, data=data, pretrained=PretrainedRecipe("someone/model"))
    header = yaml.safe_load(card_data(recipe, options("unused")))
    assert header["base_model"] == "someone/model"
    assert header["base_model_relation"] == "finetune"
    assert header["datasets"] == ["someone/pictures"]
    encoder = TextEncoderRecipe(from_pipeline=True)
    adapted = dataclasses.replace(recipe, lora=LoraRecipe(rank=2), stages=recipe.stages[:1], text_encoder=encoder)
    adapter = yaml.safe_load(card_data(adapted, options("unused")))
    assert adapter["base_model_relation"] == "adapter"
    assert 'from_pretrained("you/mine")' in usage(recipe, "you/mine")
    assert "A name without a slash" not in usage(recipe, "you/mine")


def test_shards_are_told_without_their_folder(tmp_path):
    text = data_text(DataRecipe(shards=(str(tmp_path / "{000..012}.tar"), "https://example.com/{0..9}.tar")))
    assert "`{000..012}.tar` and `https://example.com/{0..9}.tar`" in text
    assert str(tmp_path) not in text


def test_card_is_written_without_matplotlib(again, monkeypatch, caplog):
    caplog.set_level("INFO")
    monkeypatch.setattr(model_card, "can_plot", lambda: False)
    text = write_model_card(again).read_text()
    assert "curves.png" not in text
    assert not (again.options.output_dir / "curves.png").exists()
    assert [record for record in caplog.records if "pip install matplotlib" in record.message]
    assert "samples.png" in text
    assert "license" not in front_matter(text)


def test_card_of_a_run_without_images_and_numbers(again):
    shutil.rmtree(again.options.output_dir / "samples")
    (again.options.output_dir / "history.jsonl").unlink()
    text = write_model_card(again).read_text()
    assert "![" not in text
    assert "Last losses" not in text
    assert "| `inner` | 8 | – | – | 4 |" in text


def test_card_tells_what_happened_and_not_what_the_recipe_says_now(again):
    """As if someone had changed learning rate, batch and seed of the finished run's recipe."""
    stages = [dataclasses.replace(stage, learning_rate=7.0, batch_size=64) for stage in again.recipe.stages]
    again.recipe = dataclasses.replace(again.recipe, stages=tuple(stages))
    again.options = dataclasses.replace(again.options, seed=77)
    text = write_model_card(again).read_text()
    assert "| `inner` | 8 | 4 | 16 | 4 | 0.001, cosine | all its steps were done |" in text
    assert "seed 0" in text
    assert "77" not in text.split("## Training")[1]


def test_texts_of_users_make_no_markup(again):
    evil = "x\n# Heading\n[a](http://b.c) <img src=x> | `y`"
    data = dataclasses.replace(again.recipe.data, caption_column=evil, train_split=evil)
    names = dict.fromkeys(range(2), evil)
    text = data_text(data) + "".join(classes_text(class_recipe(again.recipe), names))
    assert "\n" not in text
    code = re.sub(r"(`+)(?!`).*?(?<!`)\1(?!`)", "", text)
    assert not {"#", "[", "<", "|"} & set(code)


def class_recipe(recipe):
    data = dataclasses.replace(recipe.data, label_column="label")
    return dataclasses.replace(recipe, data=data, model={**recipe.model, "num_class_embeds": 3})


@pytest.mark.parametrize("broken", ["plot_curves", "copy_samples"])
def test_an_image_that_cannot_be_made_does_not_cost_the_card(again, monkeypatch, caplog, broken):
    def fail(*_):
        raise RuntimeError("no font")

    monkeypatch.setattr(model_card, broken, fail)
    text = write_model_card(again).read_text()
    assert "no font" in caplog.text
    assert text.count("![") == 1
    assert "## Training" in text


def test_newest_images_are_those_of_the_run_itself(again):
    samples = again.options.output_dir / "samples"
    shutil.copy(samples / "step-0000004.png", samples / "step-0000100.png")
    write_model_card(again)
    expected = (samples / "step-0000008.png").read_bytes()
    assert (again.options.output_dir / "samples.png").read_bytes() == expected


def test_a_card_that_cannot_be_written_is_not_fatal(again, caplog):
    (again.options.output_dir / "README.md").unlink()
    (again.options.output_dir / "README.md").mkdir()
    assert write_model_card(again) is None
    assert "the model is complete" in caplog.text
