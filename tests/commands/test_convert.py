# SPDX-License-Identifier: Apache-2.0
"""The conversion commands: complete folders from good input, one clear line and no folder from bad input."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

from diffusers_mdm import MatryoshkaScheduler, MDMPipeline, NestedUNetModel

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "fixtures" / "golden"
SCRIPTS = ROOT / "conversion"


def run(script: str, *args: object) -> int:
    """Run a command in this process; return its exit code."""
    spec = importlib.util.spec_from_file_location(script, SCRIPTS / f"{script}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main([str(arg) for arg in args])


def from_apple(name: str, output: Path, *more: object) -> int:
    files = ("--checkpoint_path", GOLDEN / name / "vis_model.pth", "--config_path", GOLDEN / name / "config.yaml")
    return run("convert_apple_mdm_to_diffusers", *files, "--output_dir", output, *more)


def text_encoder(folder: Path, width: int) -> Path:
    """A tiny T5 encoder with a tokenizer of a few words."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    torch.manual_seed(0)
    config = T5Config(vocab_size=8, d_model=width, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    T5EncoderModel(config).save_pretrained(folder)
    words = Tokenizer(models.WordLevel({"<pad>": 0, "</s>": 1, "<unk>": 2, "red": 3, "cat": 4}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_there_as_a_process_and_back(tmp_path):
    golden = GOLDEN / "nested_unet"
    command = [sys.executable, SCRIPTS / "convert_apple_mdm_to_diffusers.py", "--output_dir", "converted"]
    command += ["--checkpoint_path", golden / "vis_model.pth", "--config_path", golden / "config.yaml"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    there = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert there.returncode == 0, there.stderr
    back = ("--model_path", tmp_path / "converted", "--output_path", tmp_path / "back.pth")
    assert run("convert_diffusers_to_apple_mdm", *back) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["back.pth", "converted"]
    assert sorted(path.name for path in (tmp_path / "converted").iterdir()) == ["scheduler", "unet"]

    from diffusers_mdm.conversion.untrusted_checkpoint import read_untrusted_checkpoint

    expected = read_untrusted_checkpoint(golden / "vis_model.pth")["state_dict"]
    found = torch.load(tmp_path / "back.pth", weights_only=True)
    assert found.keys() == {"state_dict", "batch_num"}
    assert found["state_dict"].keys() == expected.keys()
    assert all(torch.equal(found["state_dict"][name], tensor) for name, tensor in expected.items())


def test_whole_pipeline(tmp_path):
    encoder = text_encoder(tmp_path / "t5", width=40)
    assert from_apple("nested2_unet", tmp_path / "out", "--text_encoder", encoder, "--level", 1) == 0
    pipeline = MDMPipeline.from_pretrained(tmp_path / "out")
    assert isinstance(pipeline.text_encoder, T5EncoderModel)
    assert pipeline.unet.num_levels == 1
    assert pipeline.scheduler.config["shift_power"] == 2.0


def test_encoder_of_another_width_is_refused(tmp_path, capsys):
    encoder = text_encoder(tmp_path / "t5", width=24)
    assert from_apple("unet", tmp_path / "out", "--text_encoder", encoder) == 1
    assert "vectors of width 24" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("flag", "dtype"), [("fp16", torch.float16), ("bf16", torch.bfloat16)])
def test_dtype(tmp_path, flag, dtype):
    assert from_apple("nested_unet_attn", tmp_path / "out", "--dtype", flag) == 0
    weights = load_file(tmp_path / "out" / "unet" / "diffusion_pytorch_model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {dtype}


def test_community_folder(tmp_path):
    arguments = ("--model_path", GOLDEN / "community_unet", "--output_dir", tmp_path / "out", "--shift_power", 2)
    assert run("convert_community_mdm_to_diffusers", *arguments) == 0
    assert NestedUNetModel.from_pretrained(tmp_path / "out", subfolder="unet").sample_sizes == (16,)
    assert MatryoshkaScheduler.from_pretrained(tmp_path / "out", subfolder="scheduler").config["shift_power"] == 2


def hostile(path: Path, marker: Path) -> Path:
    """A checkpoint without weights, whose loading would leave a mark if anything in it ran."""

    class Runs:
        def __reduce__(self):
            return os.system, (f"touch {marker}",)

    torch.save({"state_dict": Runs()}, path)
    return path


def test_bad_input_leaves_one_line_and_no_folder(tmp_path, capsys):
    good = {"--checkpoint_path": GOLDEN / "unet" / "vis_model.pth", "--config_path": GOLDEN / "unet" / "config.yaml"}
    cut = tmp_path / "cut.pth"
    cut.write_bytes(good["--checkpoint_path"].read_bytes()[:-100])
    cases = [
        ({"--checkpoint_path": tmp_path / "none.pth"}, "no checkpoint file"),
        ({"--checkpoint_path": cut}, "truncated"),
        ({"--checkpoint_path": hostile(tmp_path / "evil.pth", tmp_path / "marker")}, "state_dict"),
        ({"--config_path": GOLDEN / "unet_options" / "config.yaml"}, "in the arguments"),
        ({"--config_path": GOLDEN / "nested_unet_video" / "config.yaml"}, "in the arguments"),
        ({"--config_path": GOLDEN / "unet" / "meta.json"}, "not an ml-mdm model config"),
        ({"--text_encoder": tmp_path / "nowhere"}, "nowhere"),
        ({"--level": 3}, "cannot be taken"),
    ]
    before = sorted(tmp_path.iterdir())
    for change, message in cases:
        arguments = [item for pair in {**good, **change}.items() for item in pair]
        assert run("convert_apple_mdm_to_diffusers", *arguments, "--output_dir", tmp_path / "out") == 1
        error = capsys.readouterr().err
        assert ": error: " in error
        assert error.count("\n") == 1
        assert message in error
        assert "Traceback" not in error
        assert sorted(tmp_path.iterdir()) == before


def test_existing_output_is_kept(tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("x")
    assert from_apple("unet", tmp_path / "out") == 1
    assert "exists already" in capsys.readouterr().err
    assert (tmp_path / "out" / "mine").read_text() == "x"


def test_nothing_to_convert_back(tmp_path, capsys):
    (tmp_path / "config.json").write_text(json.dumps({}))
    arguments = ("--model_path", tmp_path, "--output_path", tmp_path / "back.pth")
    assert run("convert_diffusers_to_apple_mdm", *arguments) == 1
    assert "is not a model folder" in capsys.readouterr().err
    assert not (tmp_path / "back.pth").exists()
