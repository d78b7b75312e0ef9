# SPDX-License-Identifier: Apache-2.0
"""Whole runs over the latents of a tiny autoencoder: from scratch, resumed, fine-tuned, LoRA, classes."""

import dataclasses
import json
import re
import runpy
import shutil
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image
from safetensors.torch import load_file

from diffusers_mdm import DiffusionPipeline, MDMClassConditionalPipeline, MDMPipeline, MDMVideoPipeline
from diffusers_mdm.training.commands.run_command import CLASS_CONDITIONAL, run_command
from diffusers_mdm.training.loop.engine import resolve_recipe, run_recipe
from diffusers_mdm.training.loop.held_out import measure_validation_loss
from diffusers_mdm.training.loop.stage_data import open_held_out
from diffusers_mdm.training.loop.stage_setup import begin_stage
from diffusers_mdm.training.loop.start import start_run
from diffusers_mdm.training.recipe.loading import load_recipe
from diffusers_mdm.training.recipe.pretrained import VaeRecipe
from diffusers_mdm.training.state.history import History
from tests.pipelines.tiny_pipeline import draw, seed
from tests.training.labelled_images import class_recipe, write_labelled
from tests.training.loop.run_folders import averages, only_result, options
from tests.training.tiny_clips import NUM_FRAMES, video_recipe
from tests.training.tiny_latents import CHANNELS, FACTOR, latent_recipe, of_latents, save_latent_pipeline, save_vae

QUICK = ["--max_train_steps", "2", "--train_batch_size", "4", "--report_to", "none", "--checkpointing_steps", "100"]


def weights(folder: Path, part: str = "unet") -> dict[str, torch.Tensor]:
    return load_file(folder / part / "diffusion_pytorch_model.safetensors")


def everything(checkpoint: Path) -> dict[str, torch.Tensor]:
    parts = {"ema": averages(checkpoint), "optimizer": load_file(checkpoint / "optimizer.safetensors")}
    named = {f"{part}: {name}": value for part, found in parts.items() for name, value in found.items()}
    return {**weights(checkpoint), **named}


def run_example(text: str, folder: Path, monkeypatch) -> dict:
    """Run the card's Python example in `folder` and give its variables."""
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (folder / "example.py").write_text(code)
    monkeypatch.chdir(folder)
    return runpy.run_path("example.py")


@pytest.fixture(scope="module")
def vae_dir(tmp_path_factory):
    return save_vae(tmp_path_factory.mktemp("saved") / "tiny-vae")


@pytest.fixture(scope="module")
def latent_pipeline_dir(tmp_path_factory):
    return save_latent_pipeline(tmp_path_factory.mktemp("saved") / "latent-model")


@pytest.fixture(scope="module")
def held_out_dir(images_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("both")
    for split in ("train", "test"):
        shutil.copyfile(images_dir / "train-00000-of-00001.parquet", folder / f"{split}-00000-of-00001.parquet")
    return folder


@pytest.fixture(scope="module")
def recipe(held_out_dir, vae_dir):
    tiny = latent_recipe(held_out_dir, vae_dir)
    data = dataclasses.replace(tiny.data, validation_split="test", random_flip=True)
    return dataclasses.replace(tiny, data=data)


@pytest.fixture(scope="module")
def finished(recipe, tmp_path_factory):
    """A run of the tiny recipe over latents, with a checkpoint every second step."""
    return run_recipe(recipe, options(tmp_path_factory.mktemp("finished") / "latents", validation_steps=100))


def test_the_pipeline_has_its_autoencoder_and_draws_images_of_their_size(finished, vae_dir):
    pipeline = DiffusionPipeline.from_pretrained(finished)
    assert isinstance(pipeline, MDMPipeline)
    assert pipeline.image_sides == (16, 32)
    assert not pipeline.scheduler.config.clip_sample
    assert draw(pipeline).shape == (1, 3, 32, 32)
    assert draw(pipeline, height=16).shape == (1, 3, 16, 16)
    before, after = weights(vae_dir.parent, vae_dir.name), weights(finished, "vae")
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert "_name_or_path" not in json.loads((finished / "vae" / "config.json").read_text())
    grid = Image.open(finished / "samples.png")
    assert len({grid.getpixel((x, grid.height // 2)) for x in range(grid.width)}) > 2


def test_losses_of_every_level_are_measured(finished):
    rows = History(finished / "history.jsonl").read()
    last = {key: value for row in rows for key, value in row.items()}
    assert 0 < last["validation_loss/level_1"] < 10
    assert 0 < last["loss/level_1"] < 10


def test_the_held_out_loss_is_the_same_each_time(recipe, tmp_path):
    run = start_run(recipe, options(tmp_path))
    begin_stage(run, recipe.stages[0])
    held_out = open_held_out(run, recipe.stages[0], {})
    one, other = (measure_validation_loss(run, recipe.stages[0], held_out)[0] for _ in range(2))
    assert one == other
    assert run.unet.config["in_channels"] == CHANNELS


def test_a_resumed_run_ends_bit_for_bit_where_an_uninterrupted_one_does(finished, recipe, tmp_path):
    """Across growth, too: the checkpoint is of the first stage's last step but two."""
    shutil.copytree(finished / "checkpoint-2", tmp_path / "checkpoint-2")
    run_recipe(recipe, only_result(tmp_path))
    one, other = everything(finished / "checkpoint-8"), everything(tmp_path / "checkpoint-8")
    assert one.keys() == other.keys()
    assert [name for name, value in one.items() if not torch.equal(value, other[name])] == []


@pytest.mark.slow
def test_clips_are_trained_over_the_latents_of_their_frames(clips_dir, images_dir, vae_dir, tmp_path):
    """Images first, then clips with images beside them, of two levels in the end."""
    clips = of_latents(video_recipe(clips_dir, images_dir), vae_dir)
    pipeline = MDMVideoPipeline.from_pretrained(run_recipe(clips, options(tmp_path / "clips")))
    drawn = pipeline("red square, slow", num_inference_steps=2, generator=seed(0), output_type="pt").frames
    side = FACTOR * clips.sample_size * 2
    assert (pipeline.image_sides[-1], pipeline.unet.level_frames[-1]) == (side, NUM_FRAMES)
    assert drawn.shape == (1, NUM_FRAMES, 3, side, side)


def test_another_autoencoder_does_not_resume(finished, recipe, tmp_path):
    shutil.copytree(finished / "checkpoint-2", tmp_path / "checkpoint-2")
    other = save_vae(tmp_path / "other")
    with pytest.raises(ValueError, match=r"`vae\.pretrained`"):
        run_recipe(dataclasses.replace(recipe, vae=VaeRecipe(str(other))), options(tmp_path))


def test_accumulated_steps_equal_whole_ones(held_out_dir, vae_dir, tmp_path):
    results = []
    for size, accumulated in ((8, 1), (4, 2)):
        fields = {"batch_size": size, "gradient_accumulation_steps": accumulated, "batch_fractions": None}
        tiny = latent_recipe(held_out_dir, vae_dir, **fields, steps=2, lr_warmup_steps=0)
        # What would magnify rounding is left out: pads that count, and Adam's division by tiny numbers.
        smooth = dataclasses.replace(
            tiny,
            model={**tiny.model, "use_cross_attention_mask": True},
            optimizer=dataclasses.replace(tiny.optimizer, adam_epsilon=1e-2),
            zero_init=False,
        )
        results.append(weights(run_recipe(smooth, only_result(tmp_path / str(size)))))
    for name, value in results[0].items():
        # 1e-4 of the largest entry: float32 sums in another order.
        assert (value - results[1][name]).abs().max() <= 1e-4 * max(value.abs().max().item(), 1e-3), name


@pytest.fixture
def other_precision():
    """One test has another precision than those before and after it."""
    AcceleratorState._reset_state()
    yield
    AcceleratorState._reset_state()


@pytest.mark.usefixtures("other_precision")
def test_half_precision_keeps_the_autoencoder_exact(recipe, vae_dir, tmp_path):
    """The run's autoencoder is rounded to bf16; the saved one is not."""
    first = dataclasses.replace(recipe, stages=recipe.stages[:1])
    folder = run_recipe(first, only_result(tmp_path / "half", max_train_steps=2, mixed_precision="bf16"))
    saved, original = weights(folder, "vae"), weights(vae_dir.parent, vae_dir.name)
    assert all(torch.equal(value, saved[name]) for name, value in original.items())
    half = options(tmp_path / "other", mixed_precision="bf16")
    again = start_run(resolve_recipe(first, half), half)
    begin_stage(again, first.stages[0])
    assert again.vae.dtype == torch.bfloat16


def test_the_card_tells_of_latents_and_its_example_draws(finished, monkeypatch):
    text = (finished / "README.md").read_text()
    assert "for images of 16 and 32 pixels, generated together." in text
    assert "works on the latents of the autoencoder `tiny-vae`, 2 times smaller than the images" in text
    assert "latents for training were sampled from its posterior" in text
    assert str(finished.parent) not in text
    drawn = run_example(text, finished.parent, monkeypatch)
    assert (drawn["image"].size, drawn["small"].size) == ((32, 32), (16, 16))


def test_the_written_recipe_runs_again(finished, recipe):
    again = load_recipe(finished / "recipe.json")
    assert again.vae == recipe.vae
    written = json.loads((finished / "recipe.json").read_text())
    assert written["vae"]["pretrained"].startswith("..")


# --- commands ---


def train(*words: object, kind=None) -> None:
    run_command(*([] if kind is None else [kind]), arguments=[*QUICK, *map(str, words)])


def test_fine_tuning_takes_the_autoencoder_of_the_pipeline(latent_pipeline_dir, images_dir, tmp_path):
    words = ["--pretrained_model_name_or_path", latent_pipeline_dir, "--train_data_dir", images_dir]
    train(*words, "--learning_rate", "1e-2", "--validation_prompts", "a cat", "--output_dir", tmp_path)
    assert load_recipe(tmp_path / "recipe.json").vae == VaeRecipe(from_pipeline=True)
    before, after = weights(latent_pipeline_dir, "vae"), weights(tmp_path, "vae")
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    before, after = weights(latent_pipeline_dir), weights(tmp_path)
    assert not all(torch.equal(value, after[name]) for name, value in before.items())
    assert draw(MDMPipeline.from_pretrained(tmp_path)).shape == (1, 3, 32, 32)
    assert (tmp_path / "samples.png").is_file()
    assert "works on the latents of the base model's autoencoder" in (tmp_path / "README.md").read_text()


def test_the_resolution_is_that_of_images(latent_pipeline_dir, images_dir, tmp_path, capsys):
    words = ["--pretrained_model_name_or_path", latent_pipeline_dir, "--train_data_dir", images_dir]
    train(*words, "--resolution", "16", "--output_dir", tmp_path)
    assert MDMPipeline.from_pretrained(tmp_path).image_sides == (16,)
    with pytest.raises(SystemExit):
        train(*words, "--resolution", "8", "--output_dir", tmp_path)
    assert "the levels of the model have 16, 32 pixels" in capsys.readouterr().err


def test_lora_draws_with_the_autoencoder_it_was_trained_with(latent_pipeline_dir, images_dir, tmp_path, monkeypatch):
    other = save_vae(tmp_path / "other-vae")
    words = ["--pretrained_model_name_or_path", latent_pipeline_dir, "--train_data_dir", images_dir, "--rank", 2]
    words += ["--learning_rate", "1e-1", "--pretrained_vae_model_name_or_path", other]
    train(*words, "--output_dir", tmp_path / "lora")
    assert not (tmp_path / "lora" / "vae").exists()
    (tmp_path / "latent-model").symlink_to(latent_pipeline_dir)
    drawn = run_example((tmp_path / "lora" / "README.md").read_text(), tmp_path, monkeypatch)
    assert drawn["pipe"].vae is drawn["vae"]
    assert drawn["pipe"].get_active_adapters()
    assert drawn["image"].size == (32, 32)


@pytest.mark.slow
def test_classes_are_learnt_over_latents(images_dir, vae_dir, tmp_path):
    recipe = of_latents(class_recipe(write_labelled(images_dir, tmp_path / "data")), vae_dir)
    folder = run_recipe(recipe, options(tmp_path / "scratch"))
    pipeline = MDMClassConditionalPipeline.from_pretrained(folder)
    assert pipeline("line", num_inference_steps=1, generator=seed(0)).images[0].size == (32, 32)
    words = ["--pretrained_model_name_or_path", folder, "--train_data_dir", tmp_path / "data"]
    train(*words, "--label_column", "kind", "--output_dir", tmp_path / "tuned", kind=CLASS_CONDITIONAL)
    assert MDMClassConditionalPipeline.from_pretrained(tmp_path / "tuned").image_sides == (16, 32)


def test_class_images_of_a_subject_have_their_size(latent_pipeline_dir, images_dir, tmp_path):
    folder = tmp_path / "subject"
    folder.mkdir()
    Image.new("RGB", (40, 40), "red").save(folder / "0.png")
    words = ["--pretrained_model_name_or_path", latent_pipeline_dir, "--instance_data_dir", folder]
    words += ["--instance_prompt", "a red dog", "--with_prior_preservation", "--class_data_dir", tmp_path / "dogs"]
    words += ["--class_prompt", "a dog", "--num_class_images", 2, "--resolution", 16]
    train(*words, "--output_dir", tmp_path / "out")
    assert {Image.open(path).size for path in (tmp_path / "dogs").glob("*.png")} == {(16, 16)}
