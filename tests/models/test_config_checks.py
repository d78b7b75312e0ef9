# SPDX-License-Identifier: Apache-2.0
"""Whatever a config says, the answer is a model or a ValueError of ours."""

import random
from typing import Any

import pytest
import torch

from diffusers_mdm import NestedUNetModel
from tests.models.tiny_models import two_level_config, video_config

BAD_VALUES: list[Any] = [
    None,
    0,
    -1,
    1,
    2.5,
    10**9,
    10**30,
    float("nan"),
    float("inf"),
    True,
    "8",
    "",
    [],
    [[]],
    {},
    {"a": 1},
    [None],
    [[1]],
    object(),
]


def mutated(config: dict[str, Any], chance: random.Random) -> dict[str, Any]:
    """One setting, or one entry of a column, or one number in it, replaced by something else."""
    key, value = chance.choice(sorted(config)), chance.choice(BAD_VALUES)
    column = config[key]
    if not isinstance(column, tuple) or chance.random() < 0.2:
        return {**config, key: value}
    rows = list(column)
    index = chance.randrange(len(rows))
    if isinstance(rows[index], tuple) and rows[index] and chance.random() < 0.7:
        entries = list(rows[index])
        entries[chance.randrange(len(entries))] = value
        rows[index] = tuple(entries)
    else:
        rows[index] = value
    return {**config, key: tuple(rows)}


@pytest.mark.parametrize("make_config", [two_level_config, video_config])
def test_any_setting_is_a_model_or_a_value_error_that_names_it(make_config):
    chance = random.Random(0)
    messages = []
    full = dict(NestedUNetModel(**make_config()).config)
    full = {key: value for key, value in full.items() if not key.startswith("_")}
    for _ in range(150):
        config = mutated(full, chance)
        try:
            with torch.device("meta"):
                NestedUNetModel(**config)
        except ValueError as error:
            messages.append(str(error))
    assert len(messages) > 100
    assert max(map(len, messages)) < 700


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"norm_num_groups": (0, 8)}, r"norm_num_groups\[0\] is 0; expected a whole number from 1"),
        ({"layers_per_block": ((10**9, 1), (1, 1))}, r"layers_per_block\[0\] is 1000000000"),
        ({"attention_layers_per_block": ((0, float("inf")), (0, 1))}, r"attention_layers_per_block\[0\] is inf"),
        ({"block_out_channels": ((10**9, 32), (16, 32))}, r"block_out_channels\[0\]"),
        ({"has_mid_block": ("yes", False)}, r"has_mid_block\[0\] is 'yes'; expected True or False"),
        ({"micro_conditioning_keys": (("a.b",), ("scale",))}, r"micro_conditioning_keys\[0\] has 'a\.b'"),
        ({"micro_conditioning_defaults": ((0.0,), (16.0,))}, r"micro_conditioning_defaults\[0\] is 0\.0"),
        ({"num_attention_heads": 0}, "`num_attention_heads` is 0"),
        ({"attention_norm_num_groups": 0}, "`attention_norm_num_groups` is 0"),
        ({"norm_eps": float("nan")}, "`norm_eps` is nan"),
        ({"sample_size": "8"}, "`sample_size` is '8'"),
        ({"num_text_layers": 10**9}, "`num_text_layers` is 1000000000"),
    ],
)
def test_the_message_says_what_was_expected(change, message):
    with pytest.raises(ValueError, match=message):
        NestedUNetModel(**{**two_level_config(), **change})
