# SPDX-License-Identifier: Apache-2.0
"""diffusers knows every pipeline: by name, by task, and as a sibling of the others that shares its weights."""

import sys

import diffusers
import pytest
import torch
from diffusers import (
    AutoPipelineForImage2Image,
    AutoPipelineForInpainting,
    AutoPipelineForText2Image,
    DiffusionPipeline,
)

import diffusers_mdm
from diffusers_mdm import MDMImg2ImgPipeline, MDMInpaintPipeline, MDMPipeline, MDMUnconditionalPipeline
from diffusers_mdm.registration import PIPELINES, register_with_diffusers
from tests.pipelines.tiny_tasks import TASKS, task

AUTO = {
    AutoPipelineForText2Image: MDMPipeline,
    AutoPipelineForImage2Image: MDMImg2ImgPipeline,
    AutoPipelineForInpainting: MDMInpaintPipeline,
}
# Pipelines that can use the same model; that for a model without conditions has no components for text.
SIBLINGS = [pipeline for pipeline in PIPELINES if pipeline is not MDMUnconditionalPipeline]
ONE_OF_EACH = ["text", "class", "upscale", "img2img", "inpaint", "video"]


def name_of(entry: type) -> str:
    return entry.__name__


@pytest.mark.parametrize("pipeline", PIPELINES, ids=name_of)
def test_every_pipeline_is_found(pipeline):
    assert pipeline.__module__ == "diffusers_mdm"
    assert getattr(diffusers_mdm, pipeline.__name__) is pipeline
    assert pipeline.__name__ in diffusers_mdm.__all__
    assert getattr(diffusers, pipeline.__name__) is pipeline
    assert getattr(diffusers.pipelines, pipeline.__name__) is pipeline


def test_every_pipeline_has_a_task_that_is_tested():
    assert {task(name).pipeline for name in TASKS} == set(PIPELINES)


def test_registering_twice_changes_nothing():
    from diffusers.pipelines import auto_pipeline

    before = len(sys.meta_path), len(auto_pipeline.SUPPORTED_TASKS_MAPPINGS)
    register_with_diffusers()
    assert (len(sys.meta_path), len(auto_pipeline.SUPPORTED_TASKS_MAPPINGS)) == before


def test_files_beside_the_weights_are_told_apart_by_their_lengths(tmp_path):
    lengths = set()
    for name in ONE_OF_EACH:
        task(name).make().save_pretrained(tmp_path / name)
        lengths.add((tmp_path / name / "pipeline.py").stat().st_size)
    assert len(lengths) == len(ONE_OF_EACH)


@pytest.mark.parametrize("name", ONE_OF_EACH)
@pytest.mark.parametrize("sibling", SIBLINGS, ids=name_of)
def test_from_pipe_shares_every_component(name, sibling, caplog):
    pipe = task(name).make()
    pipe.unet.to(torch.bfloat16)
    caplog.clear()
    diffusers.utils.logging.add_handler(caplog.handler)  # diffusers' loggers do not propagate to the root
    try:
        other = sibling.from_pipe(pipe)
    finally:
        diffusers.utils.logging.remove_handler(caplog.handler)
    assert not [record for record in caplog.records if "float32" in record.message]
    assert type(other) is sibling
    for component, module in pipe.components.items():
        assert getattr(other, component) is module
    assert other.unet.dtype == torch.bfloat16
    back = task(name).pipeline.from_pipe(other)
    assert back.unet is pipe.unet
    assert back.config.get("id2label") == pipe.config.get("id2label")


@pytest.mark.parametrize("name", ONE_OF_EACH)
@pytest.mark.parametrize("auto", AUTO, ids=name_of)
def test_auto_pipelines_convert(name, auto):
    pipe = task(name).make()
    other = auto.from_pipe(pipe)
    assert type(other) is AUTO[auto]
    assert other.unet is pipe.unet


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_auto_pipelines_and_siblings_load_what_another_saved(name, tmp_path):
    pipe = task(name).make()
    pipe.save_pretrained(tmp_path)
    for auto, expected in AUTO.items():
        assert type(auto.from_pretrained(tmp_path)) is expected
    for sibling in SIBLINGS:
        loaded = sibling.from_pretrained(tmp_path)
        assert type(loaded) is sibling
    assert type(DiffusionPipeline.from_pretrained(tmp_path)) is task(name).pipeline


def test_converted_pipelines_draw_as_if_made_for_it():
    target = task("img2img")
    converted = MDMImg2ImgPipeline.from_pipe(task("text").make())
    converted.set_progress_bar_config(disable=True)
    assert torch.equal(target.draw(converted), target.draw(target.make()))
