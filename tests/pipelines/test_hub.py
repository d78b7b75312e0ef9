# SPDX-License-Identifier: Apache-2.0
"""Pipelines on the Hub: fetched and pushed by a process of its own, against a local fake of the Hub's interface."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.pipelines.fake_hub import fake_hub
from tests.pipelines.tiny_pipeline import draw, make_pipeline

ROOT = Path(__file__).parents[2]
FETCH_AND_PUSH = """
import json, sys
import torch
from diffusers_mdm import MDMPipeline, MDMUnconditionalPipeline, NestedUNetModel
from diffusers import AutoModel, AutoPipelineForText2Image, DiffusionPipeline
from safetensors.torch import save_file
from tests.pipelines.tiny_pipeline import draw, make_scheduler
from tests.pipelines.tiny_tasks import make_plain_unet

out = sys.argv[1]
images = {"mdm": draw(MDMPipeline.from_pretrained("someone/tiny"))}
images["diffusers"] = draw(DiffusionPipeline.from_pretrained("someone/tiny"))
images["auto"] = draw(AutoPipelineForText2Image.from_pretrained("someone/tiny"))
images["cached"] = draw(MDMPipeline.from_pretrained("someone/tiny", local_files_only=True))
half = MDMPipeline.from_pretrained("someone/tiny", variant="fp16", dtype=torch.float16)
assert half.unet.dtype == torch.float16
assert isinstance(AutoModel.from_pretrained("someone/tiny", subfolder="unet"), NestedUNetModel)

pipe = MDMPipeline.from_pretrained("someone/tiny")
pipe.push_to_hub("someone/pushed", token="hf_made_up")
images["pushed"] = draw(MDMPipeline.from_pretrained("someone/pushed"))
pipe.save_pretrained(out + "/saved", push_to_hub=True, repo_id="someone/saved", token="hf_made_up")
pipe.unet.push_to_hub("someone/unet", token="hf_made_up")
assert isinstance(NestedUNetModel.from_pretrained("someone/unet"), NestedUNetModel)

plain = MDMUnconditionalPipeline(make_plain_unet(), make_scheduler())
plain.push_to_hub("someone/plain", token="hf_made_up")
settings = {"num_inference_steps": 1, "output_type": "pt"}
found = DiffusionPipeline.from_pretrained("someone/plain")
assert type(found) is MDMUnconditionalPipeline
pushed, made = (pipe(generator=torch.Generator().manual_seed(0), **settings).images for pipe in (found, plain))
torch.testing.assert_close(pushed, made, atol=1e-5, rtol=0)
save_file(images, out + "/images.safetensors")
"""


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """Run everything once; give what was drawn, what was fetched, and the folder of the repositories."""
    root, out = tmp_path_factory.mktemp("hub"), tmp_path_factory.mktemp("out")
    # The full weights last: the config of a transformers model records the dtype of the last save.
    make_pipeline().to(dtype=torch.float16).save_pretrained(root / "someone" / "tiny", variant="fp16")
    make_pipeline().save_pretrained(root / "someone" / "tiny")
    for name in ("unet/diffusion_pytorch_model.bin", "text_encoder/pytorch_model.bin", "vis_model.pth"):
        (root / "someone" / "tiny" / name).write_bytes(b"never to be fetched")
    with fake_hub(root) as (endpoint, downloads):
        environment = {
            **{key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")},
            "HF_ENDPOINT": endpoint,
            "HF_HOME": str(out / "home"),
            "HF_HUB_OFFLINE": "0",
            "TRANSFORMERS_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "OMP_NUM_THREADS": "1",
        }
        command = [sys.executable, "-c", FETCH_AND_PUSH, str(out)]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return load_file(out / "images.safetensors"), downloads, root / "someone"


@pytest.mark.parametrize("way", ["mdm", "diffusers", "auto", "cached", "pushed"])
def test_a_fetched_pipeline_draws_the_same(hub, way):
    images, _, _ = hub
    torch.testing.assert_close(images[way], draw(make_pipeline()), atol=1e-5, rtol=0)
    assert torch.equal(images[way], images["mdm"])


def test_only_safe_and_needed_files_are_fetched(hub):
    _, downloads, _ = hub
    assert not [name for name in downloads if name.endswith((".bin", ".pth"))]
    assert "unet/diffusion_pytorch_model.fp16.safetensors" in downloads


@pytest.mark.parametrize("name", ["pushed", "saved"])
def test_a_pushed_repository_is_complete(hub, name):
    _, _, repositories = hub
    index = json.loads((repositories / name / "model_index.json").read_text())
    assert index["unet"] == ["diffusers_mdm", "NestedUNetModel"]
    assert (repositories / name / "pipeline.py").is_file()
    assert "diffusers" in (repositories / name / "README.md").read_text()


def test_a_pushed_pipeline_without_text_has_two_components(hub):
    _, _, repositories = hub
    index = json.loads((repositories / "plain" / "model_index.json").read_text())
    assert index["unet"] == ["diffusers_mdm", "NestedUNetModel"]
    assert not (repositories / "plain" / "text_encoder").exists()
    assert (repositories / "plain" / "pipeline.py").is_file()
