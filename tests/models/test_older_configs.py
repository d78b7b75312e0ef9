# SPDX-License-Identifier: Apache-2.0
"""A config that an older version saved is read as its model was: whole, as rows, to grow, to open and to convert."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from diffusers_mdm import LevelConfig, NestedUNetModel
from diffusers_mdm.conversion.apple_mdm import to_apple_state_dict
from tests.models.tiny_models import two_level_config

OPTIONAL = (
    "patch_size",
    "num_frames",
    "temporal_layers_per_block",
    "temporal_downsample",
    "temporal_rotary",
    "tiled_adapters",
    "share_time_embedding",
    "share_blocks",
)


@pytest.fixture
def older(fixtures_dir: Path) -> dict[str, Any]:
    """As `json` reads it: lists, and only the keys that there were."""
    return json.loads((fixtures_dir / "saved_configs" / "unet_first_version.json").read_text())


def test_the_older_config_lacks_columns_of_today(older):
    today = set(LevelConfig.columns_from(LevelConfig.levels_from(NestedUNetModel(**two_level_config()).config)))
    assert today - set(older) == {"patch_size", "tiled_adapters", "share_time_embedding", "share_blocks"}


def test_an_older_config_gives_the_rows_of_its_model(older):
    expected = LevelConfig.levels_from(NestedUNetModel(**two_level_config()).config)
    assert LevelConfig.levels_from(older) == expected
    assert NestedUNetModel.from_config(older).level_configs == expected


@pytest.mark.parametrize("missing", OPTIONAL)
def test_any_optional_column_may_be_missing(config, missing):
    full = dict(NestedUNetModel(**config).config)
    del full[missing]
    assert LevelConfig.levels_from(full) == LevelConfig.levels_from(NestedUNetModel(**config).config)


def test_an_older_model_loads_grows_opens_and_converts(older, tmp_path):
    NestedUNetModel.from_config(older).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    aged = {key: value for key, value in saved.items() if key in older}
    (tmp_path / "config.json").write_text(json.dumps(aged))
    model = NestedUNetModel.from_pretrained(tmp_path)
    row = LevelConfig((8, 16), (1, 1), (0, 0), norm_num_groups=4)
    assert model.add_level(row).num_levels == 3
    assert model.inner_model(1).num_levels == 1
    assert model.to_video(2, [(1, 0), None]).level_frames == (2, 2)
    foreign = to_apple_state_dict(model.state_dict(), {})
    assert sum(value.numel() for value in foreign.values()) == sum(value.numel() for value in model.parameters())


@pytest.mark.parametrize("missing", ["block_out_channels", "layers_per_block", "dropout"])
def test_a_missing_column_that_every_version_had_is_named(older, missing):
    del older[missing]
    with pytest.raises(ValueError, match=missing):
        LevelConfig.levels_from(older)


@pytest.mark.parametrize("channels", [None, 64, [], "64", {}])
def test_channels_that_are_no_list_are_refused(older, channels):
    with pytest.raises(ValueError, match="block_out_channels"):
        LevelConfig.levels_from({**older, "block_out_channels": channels})


def test_the_shipped_models_have_rows():
    cards = Path(__file__).parents[2] / "model_cards"
    for path in sorted(cards.glob("*/unet/config.json")):
        with torch.device("meta"):
            assert NestedUNetModel.from_config(json.loads(path.read_text())).level_configs == LevelConfig.levels_from(
                json.loads(path.read_text())
            )
