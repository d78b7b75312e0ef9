# SPDX-License-Identifier: Apache-2.0
"""The command of clips: its tiny recipe, pipelines of images that become ones of clips, LoRA, encoded captions."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from diffusers_mdm import MDMVideoPipeline
from diffusers_mdm.training.modules.growth import grow_to
from tests.pipelines.tiny_pipeline import make_pipeline, make_unet, seed
from tests.training.loop.run_folders import averages
from tests.training.tiny_clips import NUM_FRAMES
from tests.training.tiny_run import RECIPES

SCRIPT = Path(__file__).parents[3] / "training" / "train_text_to_video_mdm.py"
QUICK = ["--train_batch_size", "2", "--report_to", "none", "--checkpointing_steps", "100"]
# Wide enough for temporal attention.
WIDE = {"block_out_channels": ((8, 32), (8, 32))}


@pytest.fixture(scope="module")
def wide_dir(tmp_path_factory):
    """A saved pipeline of images of 8 and 16 pixels."""
    folder = tmp_path_factory.mktemp("saved") / "pictures"
    make_pipeline(**WIDE).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def video_dir(tmp_path_factory):
    """The same after it has become one of clips, with temporal layers that do something."""
    folder = tmp_path_factory.mktemp("saved") / "clips"
    pipeline = make_pipeline(**WIDE)
    unet = pipeline.unet.to_video(NUM_FRAMES)
    torch.manual_seed(5)
    with torch.no_grad():
        for name, parameter in unet.named_parameters():
            if ".temporal_attentions." in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    MDMVideoPipeline(**{**pipeline.components, "unet": unet}).save_pretrained(folder)
    return folder


@pytest.fixture
def train(monkeypatch, tmp_path):
    """Run the command in this process; its output folder comes back."""
    spec = importlib.util.spec_from_file_location("train_text_to_video_mdm", SCRIPT)
    command = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(command)

    def run(*words: object, name: str = "out") -> Path:
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--output_dir", str(tmp_path / name), *QUICK, *map(str, words)])
        command.main()
        return tmp_path / name

    return run


def draw(pipeline: MDMVideoPipeline) -> torch.Tensor:
    pipeline.set_progress_bar_config(disable=True)
    settings = {"num_inference_steps": 2, "guidance_scale": 2.0, "generator": seed(0), "output_type": "pt"}
    return pipeline("a red apple", **settings).frames


def unet_weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")


def test_the_tiny_recipe_makes_a_pipeline(train, clips_dir):
    words = ["--recipe", RECIPES / "tiny_video.yaml", "--train_data_dir", clips_dir, "--max_train_steps", 1]
    pipeline = MDMVideoPipeline.from_pretrained(train(*words, "--validation_prompt", "frog"))
    assert draw(pipeline).shape == (1, NUM_FRAMES, 3, 16, 16)


def test_a_pipeline_of_images_becomes_one_of_clips(train, wide_dir, clips_dir):
    words = ["--pretrained_model_name_or_path", wide_dir, "--train_data_dir", clips_dir, "--num_frames", NUM_FRAMES]
    words += ["--joint_images", 1, "--max_train_steps", 2, "--learning_rate", "1e-3", "--use_ema"]
    output_dir = train(*words)
    before, after = unet_weights(wide_dir), unet_weights(output_dir)
    added = after.keys() - before.keys()
    assert before.keys() < after.keys()
    assert all(".temporal_attentions." in name for name in added)
    assert averages(output_dir / "checkpoint-2").keys() == {f"unet//{name}" for name in after}
    # Small steps: what is saved, the averages, is near to what stood under the same name before.
    assert all((after[name] - value).abs().max() < 0.01 for name, value in before.items())
    assert any(not torch.equal(after[name], value) for name, value in before.items())
    assert draw(MDMVideoPipeline.from_pretrained(output_dir)).shape == (1, NUM_FRAMES, 3, 16, 16)


def test_lora_adapts_clips(train, video_dir, clips_dir):
    words = ["--pretrained_model_name_or_path", video_dir, "--train_data_dir", clips_dir, "--max_train_steps", 2]
    output_dir = train(*words, "--rank", 2, "--learning_rate", "1e-1", "--validation_prompts", "a red apple")
    pipeline = MDMVideoPipeline.from_pretrained(video_dir)
    plain = draw(pipeline)
    pipeline.load_lora_weights(output_dir)
    assert not torch.allclose(draw(pipeline), plain, atol=1e-3)
    pipeline.unload_lora_weights()
    assert torch.equal(draw(pipeline), plain)
    saved = load_file(output_dir / "pytorch_lora_weights.safetensors")
    assert any(".temporal_attentions." in name for name in saved)
    assert "load_lora_weights" in (output_dir / "README.md").read_text()


def test_lora_does_not_make_clips_of_images(train, wide_dir, clips_dir):
    words = ["--pretrained_model_name_or_path", wide_dir, "--train_data_dir", clips_dir, "--max_train_steps", 1]
    with pytest.raises(SystemExit, match="LoRA adapts a trained video model"):
        train(*words, "--rank", 2, "--num_frames", NUM_FRAMES)


def test_captions_of_clips_and_images_are_encoded_before(train, video_dir, clips_dir):
    words = ["--pretrained_model_name_or_path", video_dir, "--train_data_dir", clips_dir, "--max_train_steps", 1]
    output_dir = train(*words, "--pre_compute_text_embeddings", "--joint_images", 1)
    assert (output_dir / "text_embeddings" / "index.json").is_file()
    assert draw(MDMVideoPipeline.from_pretrained(output_dir)).shape == (1, NUM_FRAMES, 3, 16, 16)


def test_other_frames_than_the_pipelines_are_refused(train, video_dir, clips_dir, capsys):
    words = ["--pretrained_model_name_or_path", video_dir, "--train_data_dir", clips_dir, "--max_train_steps", 1]
    with pytest.raises(SystemExit):
        train(*words, "--num_frames", 4)
    assert "generates clips of 8 frames" in capsys.readouterr().err


def test_models_that_cannot_become_the_rows_are_refused():
    images = make_unet(**WIDE)
    rows = images.to_video(NUM_FRAMES).level_configs
    assert grow_to(images, rows).level_frames == (NUM_FRAMES, NUM_FRAMES)
    with pytest.raises(ValueError, match=r"have 8, 8 frames, but those of the recipe .* 1, 1"):
        grow_to(images.to_video(NUM_FRAMES), images.level_configs)
    with pytest.raises(ValueError, match="has the channels"):
        grow_to(make_unet(block_out_channels=((8, 64), (8, 32))), rows)
