# SPDX-License-Identifier: Apache-2.0
"""Importing the public names leaves garbage collection as it was; which names they are: `test_saved_pipeline.py`."""

import gc
import importlib

import pytest

from diffusers_mdm import public_names


@pytest.fixture
def as_before():
    yield
    gc.enable()


@pytest.mark.parametrize("collects", [True, False])
def test_garbage_collection_is_as_before(collects, as_before):
    (gc.enable if collects else gc.disable)()
    importlib.reload(public_names)
    assert gc.isenabled() is collects
