# SPDX-License-Identifier: Apache-2.0
"""The command that encodes captions beforehand, and training on what it wrote."""

import dataclasses
import importlib.util
from pathlib import Path

import datasets
import pytest
import torch
from PIL import Image

from diffusers_mdm import MDMClassConditionalPipeline
from diffusers_mdm.training.commands.fine_tuning import recipe_for_pipeline
from diffusers_mdm.training.data.text.features import TextEmbeddings, read_index
from diffusers_mdm.training.loop.engine import run_recipe
from diffusers_mdm.training.recipe.data import DataRecipe
from diffusers_mdm.training.recipe.recipe import PretrainedRecipe
from diffusers_mdm.training.state.run import RunOptions
from tests.pipelines.tiny_pipeline import make_pipeline

ROOT = Path(__file__).parents[2]
CAPTIONS = ("a red apple", "the blue house", "a very happy dog")


@pytest.fixture(scope="module")
def command():
    spec = importlib.util.spec_from_file_location("precompute", ROOT / "training" / "precompute_text_embeddings.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    make_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    datasets.config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("cache")
    folder = tmp_path_factory.mktemp("pictures")
    rows = {"image": [Image.new("RGB", (16, 16), "red")] * 3, "text": list(CAPTIONS)}
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    datasets.Dataset.from_dict(rows, features=features).to_parquet(str(folder / "train.parquet"))
    return folder


def flags(model_dir, data_dir, folder) -> list[str]:
    words = ["--pretrained_model_name_or_path", model_dir, "--train_data_dir", data_dir, "--embeddings_dir", folder]
    return list(map(str, words))


def test_training_reads_what_it_wrote(command, model_dir, data_dir, tmp_path):
    command.main([*flags(model_dir, data_dir, tmp_path / "features"), "--validation_prompts", "a cat", "a dog"])
    features = TextEmbeddings(tmp_path / "features")
    assert all(text in features for text in (*CAPTIONS, "", "a cat", "a dog"))
    data = DataRecipe(path=str(data_dir), embeddings_dir=str(tmp_path / "features"))
    recipe = recipe_for_pipeline(PretrainedRecipe(str(model_dir)), data, 1)
    stage = dataclasses.replace(recipe.stages[0], batch_size=2)
    run_recipe(dataclasses.replace(recipe, stages=(stage,)), RunOptions(output_dir=tmp_path / "model", report_to=None))
    assert (tmp_path / "model" / "text_encoder").is_dir()


def test_features_of_another_text_encoder_are_refused_before_training(command, model_dir, data_dir, tmp_path):
    command.main(flags(model_dir, data_dir, tmp_path / "features"))
    other = make_pipeline()
    other.text_encoder.get_input_embeddings().weight.data[0, 0] += 1
    other.save_pretrained(tmp_path / "other")
    data = DataRecipe(path=str(data_dir), embeddings_dir=str(tmp_path / "features"))
    recipe = recipe_for_pipeline(PretrainedRecipe(str(tmp_path / "other")), data, 1)
    with pytest.raises(ValueError, match="made with another text encoder or tokenizer"):
        run_recipe(recipe, RunOptions(output_dir=tmp_path / "model", report_to=None))
    assert not (tmp_path / "model" / "unet").exists()


def test_models_of_texts_and_classes_together(command, data_dir, tmp_path):
    """The features are those of the texts; the run that reads them takes the classes from the data."""
    texts = make_pipeline(num_class_embeds=4)
    parts = {**texts.components, "id2label": {0: "apple", 1: "house", 2: "dog"}}
    MDMClassConditionalPipeline(**parts).save_pretrained(tmp_path / "model")
    rows = datasets.load_dataset(str(data_dir), split="train").add_column("kind", [0, 1, 2])
    (tmp_path / "labelled").mkdir()
    rows.to_parquet(str(tmp_path / "labelled" / "train.parquet"))
    words = [*flags(tmp_path / "model", tmp_path / "labelled", tmp_path / "features"), "--label_column", "kind"]
    command.main([*words, "--validation_prompts", "a cat"])
    features = TextEmbeddings(tmp_path / "features")
    assert all(text in features for text in (*CAPTIONS, "", "a cat"))
    embeds, _ = features.look_up(["a red apple"])
    expected, _, _, _ = texts.encode_prompt("a red apple", do_classifier_free_guidance=False)
    torch.testing.assert_close(embeds, expected)

    data = DataRecipe(path=str(tmp_path / "labelled"), label_column="kind", embeddings_dir=str(tmp_path / "features"))
    recipe = recipe_for_pipeline(PretrainedRecipe(str(tmp_path / "model")), data, 1)
    stage = dataclasses.replace(recipe.stages[0], batch_size=2)
    run_recipe(dataclasses.replace(recipe, stages=(stage,)), RunOptions(output_dir=tmp_path / "out", report_to=None))
    pipeline = MDMClassConditionalPipeline.from_pretrained(tmp_path / "out")
    assert pipeline.text_encoder is not None
    drawn = pipeline("dog", prompt="a very happy dog", num_inference_steps=1, output_type="pt").images
    assert drawn.shape == (1, 3, 16, 16)


def test_precision_length_and_files_are_as_asked(command, model_dir, data_dir, tmp_path):
    words = ["--precision", "bf16", "--max_sequence_length", "3", "--captions_per_file", "2", "--batch_size", "1"]
    command.main([*flags(model_dir, data_dir, tmp_path), *words])
    index = read_index(tmp_path)
    assert (index.dtype, index.max_sequence_length, index.is_complete) == ("bf16", 3, True)
    assert list(index.files.values()) == [2, 2]


def test_a_folder_of_another_precision_is_left_alone(command, model_dir, data_dir, tmp_path):
    command.main(flags(model_dir, data_dir, tmp_path))
    with pytest.raises(SystemExit, match="begun with dtype fp32"):
        command.main([*flags(model_dir, data_dir, tmp_path), "--precision", "fp16"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--recipe", str(ROOT / "training/recipes/tiny.yaml")], "not trained"),
        (["--recipe", str(ROOT / "training/recipes/imagenet_64.yaml")], "not trained"),
        (["--train_data_dir", "somewhere"], "--pretrained_model_name_or_path"),
    ],
)
def test_mistakes_are_one_line(command, words, message, tmp_path):
    with pytest.raises(SystemExit, match=message) as ended:
        command.main([*words, "--embeddings_dir", str(tmp_path / "features")])
    assert "\n" not in str(ended.value)
    assert not (tmp_path / "features").exists()
