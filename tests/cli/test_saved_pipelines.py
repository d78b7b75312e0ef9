# SPDX-License-Identifier: Apache-2.0
"""Pipelines of this package are found by their folder; everything else is refused before anything is loaded."""

import json

import pytest

from diffusers_mdm import MDMPipeline
from diffusers_mdm.cli.saved_pipelines import class_name, open_pipeline, pipeline_class, pipeline_names, read_index


def test_pipelines_that_take_images_are_opened_without():
    assert pipeline_class("MDMUpscalePipeline") is MDMPipeline
    assert all(pipeline_class(name) is not None for name in pipeline_names())
    assert pipeline_class("ModelMixin") is None


def test_the_index_names_the_class(model_dir):
    assert class_name(read_index(str(model_dir))) == "MDMPipeline"
    assert class_name({"_class_name": ["pipeline", "MDMPipeline"]}) == "MDMPipeline"
    assert isinstance(open_pipeline(str(model_dir)), MDMPipeline)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (None, "is neither a pipeline folder nor a Hub id"),
        ("{", "is neither a pipeline folder nor a Hub id"),
        (
            json.dumps({"_class_name": "StableDiffusionPipeline"}),
            "holds a StableDiffusionPipeline; expected",
        ),
        (json.dumps({"_class_name": []}), "expected one of MDM"),
        (json.dumps({"_class_name": "ModelMixin"}), "expected one of MDM"),
    ],
)
def test_other_folders_are_refused(index, message, tmp_path):
    if index is not None:
        (tmp_path / "model_index.json").write_text(index, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        open_pipeline(str(tmp_path))
