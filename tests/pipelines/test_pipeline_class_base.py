# SPDX-License-Identifier: Apache-2.0
"""Pipelines for models of classes: their names are kept in the config, and a model of nothing is refused."""

import pytest

from diffusers_mdm import MDMClassConditionalPipeline
from tests.pipelines.tiny_pipeline import make_scheduler
from tests.pipelines.tiny_tasks import ID2LABEL, make_class_unet


def test_names_are_part_of_the_config():
    pipe = MDMClassConditionalPipeline(make_class_unet(), make_scheduler(), id2label=ID2LABEL)
    assert pipe.config["id2label"] == {str(number): name for number, name in ID2LABEL.items()}
    assert pipe.classes.id2label == pipe.id2label == ID2LABEL
    pipe.register_labels(None)
    assert pipe.id2label == ID2LABEL


def test_a_model_of_neither_texts_nor_classes_is_refused():
    pipe = MDMClassConditionalPipeline(make_class_unet(num_class_embeds=None), make_scheduler())
    with pytest.raises(ValueError, match="conditioned on neither texts nor classes"):
        pipe()
    with pytest.raises(ValueError, match="has no classes"):
        pipe(0)
