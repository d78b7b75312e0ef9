# SPDX-License-Identifier: Apache-2.0
"""The pictures that the training tests train on."""

import datasets
import pytest
from tiny_run import write_pictures


@pytest.fixture(scope="session")
def pictures_dir(tmp_path_factory):
    datasets.config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("cache")
    return write_pictures(tmp_path_factory.mktemp("pictures"))
