# SPDX-License-Identifier: Apache-2.0
"""The benchmarks import each other by name, as commands in one folder do."""

import sys
from pathlib import Path

import pytest
import yaml

from diffusers_mdm import NestedUNetModel
from tests.training.tiny_run import RECIPES, write_images

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))


@pytest.fixture
def tiny_model() -> NestedUNetModel:
    """Two levels, 8 and 16 pixels, with attention and text in the inner one; every branch does something."""
    model = NestedUNetModel(
        sample_size=8,
        block_out_channels=((16, 32), (8, 16)),
        layers_per_block=((1, 1), (1, 1)),
        attention_layers_per_block=((0, 1), (0, 0)),
        has_mid_block=(True, False),
        has_attention_ffn=(True, False),
        norm_num_groups=(4, 4),
        normalize_input=(False, False),
        dropout=(0.0, 0.0),
        micro_conditioning_keys=((), ()),
        micro_conditioning_defaults=((), ()),
        num_attention_heads=2,
        attention_norm_num_groups=8,
        cross_attention_dim=12,
    )
    return model.train()


@pytest.fixture
def tiny_recipe_file(tmp_path_factory) -> Path:
    """The shipped tiny recipe on twelve drawn images."""
    folder = tmp_path_factory.mktemp("recipe")
    recipe = yaml.safe_load((RECIPES / "tiny.yaml").read_text())
    recipe["data"]["path"] = str(write_images(folder / "pictures"))
    file = folder / "tiny.yaml"
    file.write_text(yaml.safe_dump(recipe))
    return file
