# SPDX-License-Identifier: Apache-2.0
"""Each part of another library that may move without notice is where it is expected, or its absence is explained."""

import contextlib
import importlib
import logging
import sys

import diffusers
import pytest
import torch
from diffusers.configuration_utils import FrozenDict
from torch._subclasses.fake_tensor import FakeTensorMode

from diffusers_mdm import MatryoshkaScheduler, registration
from diffusers_mdm.library_internals import (
    DEFAULTED_KEYS,
    FETCH_LORA,
    GRAPH_LIMIT,
    INTERNALS,
    LOADABLE_CLASSES,
    OF_SUBCLASSES,
    ORIGIN_KEY,
    SINGLE_FILE_CLASSES,
    Internal,
    group_offload_folder,
    inside_of,
    is_hooked,
    raise_graph_limit,
    replace_config,
    storage_address,
    subtract_each,
)
from tests.group_offloading import needs_group_offloading
from tests.pipelines.tiny_pipeline import make_unet


@pytest.mark.parametrize("internal", INTERNALS, ids=lambda internal: internal.name)
def test_each_is_there(internal):
    assert internal.get() is not None


@pytest.mark.parametrize("internal", OF_SUBCLASSES, ids=lambda internal: internal.name)
def test_what_subclasses_set_is_asked_for_by_their_bases(internal):
    module, _, name = internal.name.rpartition(".")
    assert internal.get() is not None or name in vars(Internal(internal.module, module, internal.purpose).get())


@pytest.mark.parametrize("module", ["diffusers.loaders.lora_base", "diffusers.moved"])
def test_what_has_moved_is_named_in_a_sentence(module):
    with pytest.raises(ImportError, match=rf"diffusers .* has no `{module}\._moved`, .* cannot read LoRA files\."):
        Internal(module, "_moved", "read LoRA files").get()


def test_defaults_are_noted_where_they_are_looked_for():
    assert "shift_power" in MatryoshkaScheduler().config[DEFAULTED_KEYS]


def test_where_a_model_was_loaded_from_is_noted_where_it_is_looked_for(tmp_path):
    make_unet().save_pretrained(tmp_path)
    assert type(make_unet()).from_pretrained(tmp_path).config[ORIGIN_KEY] == tmp_path


def test_tensors_are_subtracted_from_each_other_pair_by_pair():
    ours, theirs = [torch.ones(2), torch.full((3,), 4.0)], [torch.zeros(2), torch.full((3,), 2.0)]
    subtract_each(ours, theirs, 0.25)
    assert [tensor.tolist() for tensor in ours] == [[0.75, 0.75], [3.5, 3.5, 3.5]]


@pytest.mark.parametrize("is_fake", [False, True])
def test_tensors_of_one_memory_have_one_address(is_fake):
    with FakeTensorMode() if is_fake else contextlib.nullcontext():
        tensor, other = torch.zeros(4, 4), torch.zeros(4, 4)
    assert storage_address(tensor) == storage_address(tensor[1:].T)
    assert storage_address(tensor) != storage_address(other)


def test_configs_are_where_they_are_replaced():
    unet = make_unet()
    kept = {key: value for key, value in unet.config.items() if key != "sample_size"}
    replace_config(unet, FrozenDict(kept))
    assert dict(unet.config) == kept


@needs_group_offloading
def test_hooks_are_found(tmp_path):
    unet = make_unet()
    assert not is_hooked(unet.modules())
    unet.enable_group_offload(torch.device("cpu"), offload_type="leaf_level", offload_to_disk_path=str(tmp_path))
    assert is_hooked(unet.modules())
    assert {group_offload_folder(module) for module in unet.modules()} == {None, str(tmp_path)}


def test_models_are_found_inside_of_what_wraps_them():
    unet = make_unet()
    for wrapped in (unet, torch.compile(unet, backend="eager"), torch.nn.DataParallel(unet)):
        assert inside_of(wrapped) is unet


def test_the_limit_of_graphs_is_only_raised():
    # torch's own way to change a setting for a while: it hides one that is deleted, as other ways do on the way back.
    with torch._dynamo.config.patch({GRAPH_LIMIT.name_here(): 8}):
        raise_graph_limit(64)
        raise_graph_limit(16)
        assert GRAPH_LIMIT.get() == 64


@pytest.mark.parametrize("internal", [LOADABLE_CLASSES, SINGLE_FILE_CLASSES], ids=lambda internal: internal.name)
def test_registration_goes_on_without_a_table(monkeypatch, caplog, internal):
    monkeypatch.delattr(importlib.import_module(internal.module), internal.name)
    with caplog.at_level(logging.WARNING):
        monkeypatch.setattr(registration.logger, "propagate", True)
        registration.register_with_diffusers()
    assert f"has no `{internal.module}.{internal.name}`" in caplog.text
    assert diffusers.NestedUNetModel is registration.NestedUNetModel


def test_auto_pipelines_without_our_tables_are_imported_all_the_same(monkeypatch, caplog):
    import diffusers.pipelines.auto_pipeline as auto

    monkeypatch.delattr(auto, "AUTO_TEXT2IMAGE_PIPELINES_MAPPING")
    with caplog.at_level(logging.WARNING):
        monkeypatch.setattr(registration.logger, "propagate", True)
        registration.register_with_diffusers()
    assert "AUTO_TEXT2IMAGE_PIPELINES_MAPPING" in caplog.text
    assert auto.AUTO_IMAGE2IMAGE_PIPELINES_MAPPING["mdm"] is registration.MDMImg2ImgPipeline
    assert sys.modules["diffusers.pipelines.auto_pipeline"] is auto


def test_lora_says_what_is_missing(monkeypatch):
    monkeypatch.delattr(importlib.import_module(FETCH_LORA.module), FETCH_LORA.name)
    with pytest.raises(ImportError, match="cannot read LoRA files"):
        diffusers.MDMPipeline.lora_state_dict("somewhere")
