# SPDX-License-Identifier: Apache-2.0
"""Components of pipelines: wrong classes are refused, and shared components keep their precision."""

import contextlib
import threading

import pytest
import torch

from diffusers_mdm import MDMPipeline
from diffusers_mdm.pipelines.components import checked_components, keeping_precision, keeps_precision
from tests.pipelines.tiny_pipeline import make_pipeline

COMPONENTS = {
    "unet": "expected a NestedUNetModel",
    "scheduler": "expected a scheduler",
    "text_encoder": "expected a text encoder of transformers",
    "tokenizer": "expected a tokenizer of transformers",
    "vae": "expected an autoencoder of diffusers",
}


@pytest.mark.parametrize(("name", "expected"), COMPONENTS.items(), ids=COMPONENTS)
def test_a_component_of_a_wrong_class_is_refused(name, expected):
    with pytest.raises(TypeError, match=rf"`{name}` is .*; {expected}"):
        checked_components({name: torch.nn.Linear(1, 1) if name != "tokenizer" else 3})


def test_absent_and_wrapped_components_are_accepted():
    pipeline = make_pipeline()
    wrapped = torch.nn.ModuleDict({"module": pipeline.unet})
    assert checked_components({**pipeline.components, "unet": None})["unet"] is None
    assert checked_components({"unet": wrapped})["unet"] is wrapped


def test_components_are_cast_in_a_new_pipeline_only_if_it_is_requested():
    pipeline = make_pipeline()
    assert MDMPipeline.from_pipe(pipeline).unet.dtype == torch.float32
    pipeline.unet.bfloat16()
    assert MDMPipeline.from_pipe(pipeline).unet.dtype == torch.bfloat16
    assert MDMPipeline.from_pipe(pipeline, dtype=torch.float32).unet.dtype == torch.float32


def test_precision_is_kept_only_inside_the_block_and_in_its_thread():
    seen = []
    with keeping_precision():
        assert keeps_precision()
        other = threading.Thread(target=lambda: seen.append(keeps_precision()))
        other.start()
        other.join()
    with contextlib.suppress(KeyError), keeping_precision():
        raise KeyError
    assert seen == [False]
    assert not keeps_precision()
