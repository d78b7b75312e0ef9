# SPDX-License-Identifier: Apache-2.0
"""Runs that several files of tests look at."""

import pytest

from diffusers_mdm.training.loop.engine import run_recipe
from tests.training.loop.run_folders import options
from tests.training.tiny_run import tiny_recipe


@pytest.fixture(scope="session")
def finished(images_dir, tmp_path_factory):
    """A whole run of two stages, four steps each, with a checkpoint every second step. Tests copy what they change."""
    output_dir = tmp_path_factory.mktemp("finished")
    run_recipe(tiny_recipe(images_dir), options(output_dir))
    return output_dir
