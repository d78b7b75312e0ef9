# SPDX-License-Identifier: Apache-2.0
"""The images that the training tests train on."""

import datasets
import pytest

from diffusers_mdm import MDMPipeline
from diffusers_mdm.training.commands import dry_run
from diffusers_mdm.training.costs import compute_estimate, memory_estimate
from tests.pipelines.tiny_pipeline import make_pipeline
from tests.training.tiny_clips import write_clips
from tests.training.tiny_run import write_images


@pytest.fixture(scope="session")
def images_dir(tmp_path_factory):
    datasets.config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("cache")
    return write_images(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="session")
def clips_dir(tmp_path_factory):
    datasets.config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("clips-cache")
    return write_clips(tmp_path_factory.mktemp("clips"))


@pytest.fixture(scope="session")
def pipeline_dir(tmp_path_factory):
    """A saved pipeline of 8 and 16 pixels, which says how it is to be drawn from."""
    folder = tmp_path_factory.mktemp("saved") / "tiny-model"
    MDMPipeline(**make_pipeline().components, drawing_defaults={"guidance_scale": 2.0}).save_pretrained(folder)
    return folder


@pytest.fixture
def no_forward(monkeypatch):
    """Leave out the forward passes without memory by which costs are estimated; they take a second per stage."""
    for module in (memory_estimate, dry_run):
        monkeypatch.setattr(module, "stage_activations", lambda *arguments: [memory_estimate.Activations()])
    monkeypatch.setattr(compute_estimate, "pass_flops", lambda *arguments: 1e9)
