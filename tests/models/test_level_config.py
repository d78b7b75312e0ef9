# SPDX-License-Identifier: Apache-2.0
"""Columns and rows say the same; contradictions are refused by name."""

import pytest

from diffusers_mdm import LevelConfig, NestedUNetModel


def test_columns_and_rows_are_inverse(model):
    rows = LevelConfig.levels_from(model.config)
    columns = LevelConfig.columns_from(rows)
    assert LevelConfig.levels_from({**model.config, **columns}) == rows
    assert columns["block_out_channels"] == model.config.block_out_channels
    assert columns["num_frames"] is None


def test_lists_from_json_become_tuples(model):
    as_lists = {
        name: [list(entry) if isinstance(entry, tuple) else entry for entry in column]
        for name, column in LevelConfig.columns_from(LevelConfig.levels_from(model.config)).items()
        if column is not None
    }
    assert LevelConfig.levels_from({**model.config, **as_lists}) == LevelConfig.levels_from(model.config)


def test_ratio_is_a_power_of_the_resolutions():
    assert LevelConfig((8, 8, 8), (1, 1, 1), (0, 0, 0), norm_num_groups=8).ratio == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dropout": (0.0,)}, "dropout"),
        ({"dropout": (0.0, 1.5)}, r"dropout\[1\]"),
        ({"layers_per_block": ((1, 2), (1,))}, r"layers_per_block\[1\]"),
        ({"layers_per_block": ((1, 0), (1, 1))}, "from 1 to"),
        ({"attention_layers_per_block": ((0, -1), (0, 1))}, "0 for none"),
        ({"block_out_channels": ((32, 32), (16,))}, "one resolution|one entry"),
        ({"block_out_channels": ((32, 30), (16, 32))}, "not divisible"),
        ({"has_mid_block": (True, True)}, "level inside"),
        ({"normalize_input": (True, False)}, "innermost level is never normalised"),
        ({"micro_conditioning_defaults": ((8.0,), ())}, "pair up"),
        ({"num_frames": (1, 16)}, r"level 0 has 1 .* expected 1"),
        ({"temporal_layers_per_block": (None, (1, 1))}, "needs several"),
        ({"block_out_channels": (({"a": 1}, 32), (16, 32))}, "mapping|nested|plain"),
        ({"num_attention_heads": 5}, "num_attention_heads"),
        ({"attention_norm_num_groups": 24}, "attention_norm_num_groups"),
        ({"time_embed_dim": 20}, "multiple of 8"),
        ({"cross_attention_dim": None}, "cross_attention_dim"),
        ({"output_bound": -1.0}, "output_bound"),
    ],
)
def test_contradictions_are_refused(config, change, message):
    with pytest.raises(ValueError, match=message):
        NestedUNetModel(**{**config, **change})
