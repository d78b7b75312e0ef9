# SPDX-License-Identifier: Apache-2.0
"""Models know what they offer, and share their weights between all pipelines."""

import pytest

from diffusers_mdm import MDMPipeline
from diffusers_mdm.web.limits import Limits
from diffusers_mdm.web.served_model import ServedModel
from diffusers_mdm.web.settings import ANCESTRAL, AS_SAVED
from tests.pipelines.tiny_tasks import task


def test_defaults_of_the_folder_are_offered():
    defaults = {"num_inference_steps": 3, "upscale_num_inference_steps": 2, "guidance_scale": [2.0, 1.0]}
    model = ServedModel("tiny", MDMPipeline(**task("text").make().components, drawing_defaults=defaults))
    assert model.default("text", "num_inference_steps") == 3
    assert model.default("upscale", "num_inference_steps") == 2
    assert model.default("edit", "guidance_scale") == [2.0, 1.0]


def test_defaults_are_the_published_ones_without_a_folder(models):
    assert models["tiny"].default("text", "guidance_scale") == 7.5
    assert models["kinds"].default("classes", "guidance_scale") == 4.0


def test_levels_beyond_the_limit_are_not_offered():
    model = ServedModel("tiny", task("text").make(), Limits(side=8))
    assert model.levels("text") == {0: "8 px"}
    assert [task.name for task in model.tasks] == ["text", "edit"]
    with pytest.raises(ValueError, match="--max_side"):
        ServedModel("tiny", task("text").make(), Limits(side=4))


def test_levels_of_clips_name_their_frames(models):
    assert models["moving"].levels("clips") == {0: "8 px, 1 frame", 1: "8 px, 4 frames", 2: "16 px, 4 frames"}


def test_classes_are_offered_by_their_first_name(models):
    assert models["kinds"].labels == ("cat", "dog", "house", "red apple")
    assert models["kinds"].class_number("tabby") == models["kinds"].class_number("0") == 0


def test_pipelines_share_weights_and_differ_in_the_solver(tiny):
    base = tiny.pipeline_for("text")
    other = tiny.pipeline_for("upscale", "dpmsolver++")
    assert other.unet is base.unet is tiny.pipeline.unet
    assert other.scheduler.config["algorithm"] == "dpmsolver++"
    assert other.scheduler.config["timestep_spacing"] == "log_snr"
    assert tiny.pipeline.scheduler.config["algorithm"] == "ddim"
    assert tiny.pipeline_for("upscale", "dpmsolver++") is other
    assert tiny.pipeline_for("text", ANCESTRAL).scheduler.config["algorithm"] == "ddim"
    assert base.scheduler is tiny.pipeline.scheduler
    assert tiny.solvers[0] == AS_SAVED
