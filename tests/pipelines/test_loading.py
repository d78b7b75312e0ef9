# SPDX-License-Identifier: Apache-2.0
"""Saved pipelines come back by every way that users try."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import AutoModel, AutoPipelineForText2Image, DiffusionPipeline
from PIL import Image

import diffusers_mdm
from diffusers_mdm import MatryoshkaScheduler, MDMPipeline, NestedUNetModel
from diffusers_mdm.conversion.apple_mdm import convert_apple_checkpoint
from tests.pipelines.tiny_pipeline import draw, make_pipeline

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "fixtures" / "golden"
FILES = {
    "model_index.json",
    "pipeline.py",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "text_encoder/model.safetensors",
    "tokenizer/tokenizer.json",
    "tokenizer/tokenizer_config.json",
    "unet/config.json",
    "unet/diffusion_pytorch_model.safetensors",
}
WITHOUT_IMPORTING = """
import sys
from diffusers import AutoModel, DiffusionPipeline
from safetensors.torch import save_file

folder, out = sys.argv[1:]
# Newer releases of diffusers do not import what a folder names, older ones do.
was_imported = False
for load, error in (
    (lambda: DiffusionPipeline.from_pretrained(folder), AttributeError),
    (lambda: DiffusionPipeline.from_pretrained(folder, trust_remote_code=True), AttributeError),
    (lambda: AutoModel.from_pretrained(folder, subfolder="unet"), (AttributeError, ValueError)),
):
    try:
        load()
    except error:
        continue
    was_imported = True
assert ("diffusers_mdm" in sys.modules) == was_imported
images = {}
for name, where in (("folder", folder), ("file", folder + "/pipeline.py")):
    pipe = DiffusionPipeline.from_pretrained(folder, custom_pipeline=where, trust_remote_code=True)
    assert type(pipe).__name__ == "MDMPipeline"
    from tests.pipelines.tiny_pipeline import draw  # imports the package, which the line above has done already
    images[name] = draw(pipe)
pipe.save_pretrained(out + "/again")
save_file(images, out + "/images.safetensors")
print(*sorted({name.split(".")[1] for name in sys.modules if name.startswith("diffusers_mdm.")}))
"""
# What of the package is imported to load, draw and save: nothing of the commands, of training or of evaluation.
PARTS = {"checked_values", "config_reading", "library_internals", "pyramid", "rgb_images", "models", "schedulers"}
PARTS |= {"loaders", "pipelines", "registration", "conversion", "public_names"}


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return draw(make_pipeline())


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    make_pipeline().save_pretrained(folder)
    return folder


def files_of(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def index_of(folder: Path) -> dict[str, Any]:
    """What `model_index.json` says, without what changes from save to save."""
    index = json.loads((folder / "model_index.json").read_text())
    return {key: value for key, value in index.items() if key not in ("_diffusers_version", "_name_or_path")}


# The published format


def test_what_is_written(folder):
    assert files_of(folder) - {"text_encoder/generation_config.json"} == FILES
    assert index_of(folder) == {
        "_class_name": "MDMPipeline",
        "scheduler": ["diffusers_mdm", "MatryoshkaScheduler"],
        "text_encoder": ["transformers", "T5EncoderModel"],
        "tokenizer": ["transformers", "TokenizersBackend"],
        "unet": ["diffusers_mdm", "NestedUNetModel"],
        "vae": [None, None],
    }


def test_classes_say_where_they_live():
    for saved in (MDMPipeline, NestedUNetModel, MatryoshkaScheduler):
        assert saved.__module__ == "diffusers_mdm"
        assert getattr(diffusers, saved.__name__) is saved
    assert diffusers.pipelines.MDMPipeline is MDMPipeline


def test_registering_twice_changes_nothing():
    finders = len(sys.meta_path)
    diffusers_mdm.registration.register_with_diffusers()
    assert len(sys.meta_path) == finders


# Ways to load


def assert_same_image(images: torch.Tensor, expected: torch.Tensor) -> None:
    """Loaded weights are the same to the bit, but lie elsewhere in memory, which may change the order of sums."""
    torch.testing.assert_close(images, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "load",
    [
        MDMPipeline.from_pretrained,
        DiffusionPipeline.from_pretrained,
        AutoPipelineForText2Image.from_pretrained,
        lambda path: DiffusionPipeline.from_pretrained(path, custom_pipeline=str(path), trust_remote_code=True),
        lambda path: DiffusionPipeline.from_pretrained(
            path, custom_pipeline=str(path / "pipeline.py"), trust_remote_code=True
        ),
    ],
    ids=["mdm", "diffusers", "auto", "custom folder", "custom file"],
)
def test_the_same_image(load, folder, images):
    pipe = load(folder)
    assert type(pipe) is MDMPipeline
    assert_same_image(draw(pipe), images)


def test_remote_code_has_to_be_trusted(folder):
    with pytest.raises(ValueError, match="trust_remote_code"):
        DiffusionPipeline.from_pretrained(folder, custom_pipeline=str(folder))


def test_without_importing_the_package_first(folder, images, tmp_path):
    from safetensors.torch import load_file

    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", WITHOUT_IMPORTING, str(folder), str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    parts = set(done.stdout.splitlines()[-1].split())
    assert {"models", "schedulers", "pipelines"} <= parts <= PARTS
    drawn = load_file(tmp_path / "images.safetensors")
    # The other process may have another number of threads, which changes the order of sums (1.7e-6 seen).
    torch.testing.assert_close(drawn["folder"], images, atol=1e-5, rtol=0)
    assert torch.equal(drawn["folder"], drawn["file"])
    assert (tmp_path / "again" / "pipeline.py").read_text() == (folder / "pipeline.py").read_text()
    assert index_of(tmp_path / "again") == index_of(folder)


def test_diffusers_own_commands(folder, tmp_path, monkeypatch, capsys):
    """In a process that has imported the package, as docs/loading.md says."""
    from diffusers.commands.diffusers_cli import main

    monkeypatch.setattr(sys, "argv", ["diffusers-cli", "schema", "--model", str(folder)])
    main()
    assert "num_inner_steps" in capsys.readouterr().out
    call = json.dumps({"prompt": "a red apple", "num_inference_steps": 1})
    asked = [
        "--model",
        str(folder),
        "--dtype",
        "fp32",
        "--device-map",
        "cpu",
        "--seed",
        "0",
        "--pipeline-kwargs",
        call,
    ]
    monkeypatch.setattr(sys, "argv", ["diffusers-cli", "run", *asked, "--output", str(tmp_path / "apple.png")])
    main()
    with Image.open(tmp_path / "apple.png") as image:
        assert image.size == (16, 16)


def test_single_components(folder):
    for load in (NestedUNetModel.from_pretrained, AutoModel.from_pretrained):
        unet = load(str(folder), subfolder="unet")
        assert type(unet) is NestedUNetModel
        original = make_pipeline().unet.state_dict()
        assert all(torch.equal(value, original[name]) for name, value in unet.state_dict().items())
    scheduler = MatryoshkaScheduler.from_pretrained(folder, subfolder="scheduler")
    original_config = make_pipeline().scheduler.config
    assert {key: scheduler.config[key] for key in original_config if not key.startswith("_")} == {
        key: value for key, value in original_config.items() if not key.startswith("_")
    }


def test_a_component_can_be_passed(folder, images):
    unet = make_pipeline().unet
    pipe = MDMPipeline.from_pretrained(folder, unet=unet)
    assert pipe.unet is unet
    assert_same_image(draw(pipe), images)


def test_auto_pipeline_from_pipe(pipe, images):
    other = AutoPipelineForText2Image.from_pipe(pipe)
    assert type(other) is MDMPipeline
    assert torch.equal(draw(other), images)


# Forms of the weights


def test_sharded(tmp_path, pipe, images):
    pipe.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list((tmp_path / "unet").glob("*-of-*.safetensors"))) > 1
    assert_same_image(draw(MDMPipeline.from_pretrained(tmp_path)), images)
    assert_same_image(draw(DiffusionPipeline.from_pretrained(tmp_path)), images)


def test_variant(tmp_path, pipe, images):
    pipe.save_pretrained(tmp_path, variant="fp16")
    assert (tmp_path / "unet" / "diffusion_pytorch_model.fp16.safetensors").is_file()
    assert_same_image(draw(MDMPipeline.from_pretrained(tmp_path, variant="fp16")), images)
    with pytest.raises(OSError, match=r"no weights without a variant; it has variant=.fp16."):
        MDMPipeline.from_pretrained(tmp_path)


def test_dtype(folder):
    pipe = MDMPipeline.from_pretrained(folder, dtype=torch.bfloat16)
    assert pipe.unet.dtype == pipe.text_encoder.dtype == torch.bfloat16
    pipe = MDMPipeline.from_pretrained(folder, dtype={"unet": torch.float16, "default": torch.float32})
    assert pipe.unet.dtype == torch.float16
    assert pipe.text_encoder.dtype == torch.float32


@pytest.mark.parametrize("device_map", ["cpu", "balanced"])
def test_device_map(folder, images, device_map):
    if device_map == "balanced" and not torch.cuda.is_available():
        pytest.skip("diffusers balances over accelerators only")
    pipe = MDMPipeline.from_pretrained(folder, device_map=device_map)
    assert pipe.hf_device_map is not None
    torch.testing.assert_close(draw(pipe).cpu(), images, atol=1e-4, rtol=0)


def test_components_that_were_none_are_none_again(tmp_path, pipe, images):
    text = pipe.encode_prompt("a red apple")
    names = ("prompt_embeds", "negative_prompt_embeds", "prompt_attention_mask", "negative_prompt_attention_mask")
    inputs = dict(zip(names, text, strict=True))
    pipe.text_encoder = None
    pipe.tokenizer = None
    pipe.save_pretrained(tmp_path)
    loaded = MDMPipeline.from_pretrained(tmp_path)
    assert loaded.text_encoder is None
    assert loaded.tokenizer is None
    torch.testing.assert_close(draw(loaded, **inputs), images, atol=1e-5, rtol=0)


def test_a_subclass_of_ones_own_gets_no_file_that_names_it(tmp_path, pipe):
    class OwnPipeline(MDMPipeline):
        pass

    OwnPipeline(**pipe.components).save_pretrained(tmp_path)
    assert not (tmp_path / "pipeline.py").exists()


# A published checkpoint in one file


@pytest.fixture(scope="module")
def converted() -> NestedUNetModel:
    folder = GOLDEN / "nested_unet_attn"
    return convert_apple_checkpoint(folder / "vis_model.pth", folder / "config.yaml").unet


def test_single_file_with_our_config(converted, tmp_path):
    converted.save_config(tmp_path)
    unet = NestedUNetModel.from_single_file(str(GOLDEN / "nested_unet_attn" / "vis_model.pth"), config=str(tmp_path))
    expected = converted.state_dict()
    assert unet.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[key]) for key, value in unet.state_dict().items())


def test_single_file_with_the_published_config(converted):
    folder = GOLDEN / "nested_unet_attn"
    unet = NestedUNetModel.from_single_file(str(folder / "vis_model.pth"), original_config=str(folder / "config.yaml"))
    expected = converted.state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in unet.state_dict().items())
