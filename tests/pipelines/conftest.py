# SPDX-License-Identifier: Apache-2.0
"""The tiny pipeline, new for each test."""

import pytest

from diffusers_mdm import MDMPipeline
from tests.pipelines.tiny_pipeline import make_pipeline


@pytest.fixture
def pipe() -> MDMPipeline:
    return make_pipeline()
