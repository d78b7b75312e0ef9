# SPDX-License-Identifier: Apache-2.0
"""Whatever a config or a call says, the answer is a model, a prediction, a ValueError or a TypeError of ours."""

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from diffusers_mdm import NestedUNetModel
from diffusers_mdm.models.config_checks import check_classes
from tests.models.tiny_models import two_level_config, video_config
from tests.pipelines.tiny_pipeline import TEXT_WIDTH, make_unet

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


@pytest.fixture(scope="module")
def unet() -> NestedUNetModel:
    return make_unet(num_class_embeds=4)


def good_call() -> dict[str, Any]:
    return {
        "sample": [torch.randn(2, 3, 8, 8), torch.randn(2, 3, 16, 16)],
        "timestep": torch.tensor([1, 2]),
        "encoder_hidden_states": torch.randn(2, 4, TEXT_WIDTH),
        "encoder_attention_mask": torch.ones(2, 4),
        "class_labels": torch.tensor([0, 3]),
        "added_cond_kwargs": {"scale": torch.tensor([8.0, 16.0])},
    }


BAD_CALLS: dict[str, tuple[dict[str, Any], str]] = {
    "sample of numpy": ({"sample": np.zeros((2, 3, 8, 8))}, "a tensor or a list of tensors"),
    "whole numbers": ({"sample": torch.zeros(2, 3, 8, 8, dtype=torch.int64)}, "floating-point"),
    "no sample": ({"sample": None}, "a tensor or a list of tensors"),
    "no timestep": ({"timestep": None}, "`timestep` is None"),
    "text as timestep": ({"timestep": "5"}, "`timestep` is '5'"),
    "infinite timestep": ({"timestep": float("inf")}, "`timestep` is inf"),
    "timesteps of others": ({"timestep": [1, 2, 3]}, "one for each of the 2"),
    "timesteps of text": ({"timestep": ["a", "b"]}, "`timestep` is"),
    "flags as timesteps": ({"timestep": torch.tensor([True, False])}, "torch.bool"),
    "numpy states": ({"encoder_hidden_states": np.zeros((2, 4, TEXT_WIDTH))}, "`encoder_hidden_states` is"),
    "a prompt": ({"encoder_hidden_states": "a red apple"}, "`encoder_hidden_states` is 'a red apple'"),
    "no tokens": ({"encoder_hidden_states": torch.randn(2, 0, TEXT_WIDTH)}, "encoder_hidden_states"),
    "list as mask": ({"encoder_attention_mask": [[1, 1, 1, 1]] * 2}, "`encoder_attention_mask` is"),
    "flat mask": ({"encoder_attention_mask": torch.ones(4)}, "encoder_attention_mask"),
    "names of classes": ({"class_labels": ["cat", "dog"]}, "`class_labels` is"),
    "fractions of classes": ({"class_labels": torch.tensor([0.5, 1.5])}, "whole numbers"),
    "classes beyond": ({"class_labels": torch.tensor([0, 4])}, "run from 0 to 4; expected 0 to 3"),
    "negative class": ({"class_labels": torch.tensor([-1, 0])}, "run from -1"),
    "conditions of a list": ({"added_cond_kwargs": [8.0]}, "`added_cond_kwargs` is a list"),
    "no value": ({"added_cond_kwargs": {"scale": None}}, "`scale` is None"),
    "text as scale": ({"added_cond_kwargs": {"scale": "big"}}, "`scale` is 'big'"),
    "unknown condition": ({"added_cond_kwargs": {"size": 8}}, r"Unknown keys \['size'\]"),
}


@torch.no_grad()
def test_a_good_call_passes(unet):
    assert len(unet(**good_call()).sample) == 2
    assert len(unet(**{**good_call(), "timestep": 5, "added_cond_kwargs": {"scale": [8, 16]}}).sample) == 2


@torch.no_grad()
@pytest.mark.parametrize(("change", "message"), BAD_CALLS.values(), ids=list(BAD_CALLS))
def test_a_bad_call_is_refused_in_a_sentence(unet, change, message):
    with pytest.raises((ValueError, TypeError), match=message):
        unet(**{**good_call(), **change})


def test_labels_without_values_are_taken():
    with FakeTensorMode():
        check_classes(torch.zeros(2, dtype=torch.int64), 4)  # as when memory is estimated
    check_classes(torch.zeros(2, dtype=torch.int64, device="meta"), 4)
