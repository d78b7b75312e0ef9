# SPDX-License-Identifier: Apache-2.0
"""Whole runs of the command on a tiny saved pipeline: wholly, inner levels, LoRA, a subject, encoded captions."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from diffusers_mdm import MDMPipeline
from diffusers_mdm.training.state.checkpoint_folders import list_checkpoints
from tests.pipelines.tiny_pipeline import draw

SCRIPT = Path(__file__).parents[3] / "training" / "train_text_to_image_mdm.py"
QUICK = ["--max_train_steps", "3", "--train_batch_size", "4", "--report_to", "none", "--checkpointing_steps", "100"]


@pytest.fixture
def train(monkeypatch, pipeline_dir, tmp_path):
    """Run the command on the saved pipeline with more words, in this process; its output folder comes back."""
    spec = importlib.util.spec_from_file_location("train_text_to_image_mdm", SCRIPT)
    command = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(command)

    def run(*words: object, name: str = "out") -> Path:
        start = ["--pretrained_model_name_or_path", pipeline_dir, "--output_dir", tmp_path / name, *QUICK]
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, start), *map(str, words)])
        command.main()
        return tmp_path / name

    return run


def unet_weights(folder) -> dict[str, torch.Tensor]:
    return load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")


def encoder_weights(folder) -> dict[str, torch.Tensor]:
    return load_file(folder / "text_encoder" / "model.safetensors")


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def test_a_saved_pipeline_learns_as_a_whole(train, pipeline_dir, images_dir):
    output_dir = train("--train_data_dir", images_dir, "--learning_rate", "1e-3")
    before, after = unet_weights(pipeline_dir), unet_weights(output_dir)
    assert before.keys() == after.keys()
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert len(changed) > 0.9 * len(before)
    assert equal(encoder_weights(pipeline_dir), encoder_weights(output_dir))
    pipeline = MDMPipeline.from_pretrained(output_dir)
    assert pipeline.unet.sample_sizes == (8, 16)
    assert pipeline.config["drawing_defaults"] == {"guidance_scale": 2.0}
    assert not torch.equal(draw(pipeline), draw(MDMPipeline.from_pretrained(pipeline_dir)))
    train("--train_data_dir", images_dir, "--learning_rate", "1e-3")  # repeated: there is nothing left to do
    assert equal(unet_weights(output_dir), after)


def test_a_rate_of_nothing_changes_nothing(train, pipeline_dir, images_dir):
    """What is saved is what was loaded, when no step moves it."""
    output_dir = train("--train_data_dir", images_dir, "--learning_rate", "0")
    assert equal(unet_weights(output_dir), unet_weights(pipeline_dir))


def test_the_inner_level_is_trained_and_kept_alone(train, pipeline_dir, images_dir):
    output_dir = train("--train_data_dir", images_dir, "--train_levels", "1", "--learning_rate", "1e-3")
    pipeline = MDMPipeline.from_pretrained(output_dir)
    assert pipeline.unet.sample_sizes == (8,)
    assert draw(pipeline).shape[-1] == 8
    inner, whole = unet_weights(output_dir), unet_weights(pipeline_dir)
    assert set(inner) < set(whole)
    assert {name: value.shape for name, value in inner.items()} == {name: whole[name].shape for name in inner}


def test_the_text_encoder_learns_when_asked(train, pipeline_dir, images_dir):
    output_dir = train("--train_data_dir", images_dir, "--train_text_encoder", "--learning_rate", "1e-3")
    assert not equal(encoder_weights(pipeline_dir), encoder_weights(output_dir))


def test_lora_loads_into_the_pipeline_and_leaves_without_a_trace(train, pipeline_dir, images_dir):
    output_dir = train("--train_data_dir", images_dir, "--rank", "2", "--learning_rate", "1e-1", "--use_ema")
    assert (output_dir / "pytorch_lora_weights.safetensors").is_file()
    assert not (output_dir / "unet").exists()
    pipeline = MDMPipeline.from_pretrained(pipeline_dir)
    plain = draw(pipeline)
    pipeline.load_lora_weights(output_dir)
    adapted = draw(pipeline)
    assert not torch.allclose(adapted, plain, atol=1e-3)
    pipeline.unload_lora_weights()
    assert torch.equal(draw(pipeline), plain)
    assert equal(pipeline.unet.state_dict(), MDMPipeline.from_pretrained(pipeline_dir).unet.state_dict())


def test_lora_goes_on_from_its_checkpoint(train, images_dir):
    words = ["--train_data_dir", images_dir, "--rank", "2", "--learning_rate", "1e-2"]
    whole = train(*words, name="whole")
    halves = train(*words, "--checkpointing_steps", "1", "--checkpoints_total_limit", "5", name="halves")
    (halves / "checkpoint-3").rename(halves / "away")
    assert list_checkpoints(halves)[-1].name == "checkpoint-2"
    train(*words, name="halves")
    one, other = (load_file(folder / "pytorch_lora_weights.safetensors") for folder in (whole, halves))
    assert equal(one, other)


def test_a_subject_is_learnt_beside_its_class(train, tmp_path):
    subject = tmp_path / "subject"
    subject.mkdir()
    for number, color in enumerate(("red", "green")):
        Image.new("RGB", (20, 16), color).save(subject / f"{number}.jpg")
    words = [
        "--instance_data_dir",
        subject,
        "--instance_prompt",
        "a red apple",
        "--learning_rate",
        "1e-2",
        "--rank",
        "2",
    ]
    words += ["--train_batch_size", "2"]
    prior = ["--with_prior_preservation", "--class_data_dir", tmp_path / "class", "--class_prompt", "a apple"]
    prior += ["--num_class_images", "3"]
    with_prior = train(*words, *prior, name="with-prior")
    drawn = sorted(path.name for path in (tmp_path / "class").iterdir())
    assert drawn == [f"drawn-{number:05d}.png" for number in range(3)]
    weightless = train(*words, *prior, "--prior_loss_weight", "0", name="weightless")
    alone = train(*words, name="alone")
    learnt = [load_file(folder / "pytorch_lora_weights.safetensors") for folder in (with_prior, weightless, alone)]
    assert not equal(learnt[0], learnt[1])
    assert not equal(learnt[0], learnt[2])


def test_captions_are_encoded_first_and_the_encoder_comes_back_in_the_end(train, pipeline_dir, images_dir):
    words = ["--train_data_dir", images_dir, "--learning_rate", "1e-3", "--validation_prompt", "a red apple"]
    encoded = train(*words, "--pre_compute_text_embeddings", name="encoded")
    assert (encoded / "text_embeddings" / "index.json").is_file()
    assert list((encoded / "samples").glob("*.png"))
    assert equal(encoder_weights(encoded), encoder_weights(pipeline_dir))
    usual = train(*words, name="usual")
    one, other = unet_weights(encoded), unet_weights(usual)
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=1e-3, atol=1e-4)


def test_lora_on_levels_that_the_pipeline_lacks_is_refused(train, images_dir, tmp_path):
    inner = train("--train_data_dir", images_dir, "--train_levels", "1", name="inner")
    recipe = Path(__file__).parents[3] / "training" / "recipes" / "tiny.yaml"
    text = recipe.read_text().split("stages:")[0].split("text_encoder:")[0]
    mine = tmp_path / "mine.yaml"
    mine.write_text(
        f"{text}\ntext_encoder: {{from_pipeline: true}}\npretrained: {{path: {inner}}}\nlora: {{rank: 2}}\n"
        f"data: {{path: {images_dir}}}\n"
        "stages: [{name: outer, levels: 2, steps: 1, batch_size: 2, learning_rate: 1.0e-3}]\n"
    )
    with pytest.raises(SystemExit, match="LoRA adapts trained levels: the stages train 2"):
        train("--recipe", mine, "--pretrained_model_name_or_path", inner, name="grown")
