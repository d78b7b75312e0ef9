# SPDX-License-Identifier: Apache-2.0
"""A tiny saved pipeline, made once."""

from pathlib import Path

import pytest

from tests.pipelines.tiny_pipeline import make_pipeline


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory) -> Path:
    """Levels of 8 and 16 pixels, and a text encoder of a few words."""
    folder = tmp_path_factory.mktemp("model")
    make_pipeline().save_pretrained(folder)
    return folder
