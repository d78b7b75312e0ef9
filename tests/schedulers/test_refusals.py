# SPDX-License-Identifier: Apache-2.0
"""Whatever a scheduler's config or call says, the answer is a number or a ValueError or TypeError of ours."""

import random
from typing import Any

import numpy as np
import pytest
import torch

from diffusers_mdm import MatryoshkaScheduler

BAD_VALUES: list[Any] = [
    None,
    0,
    -1,
    10**12,
    2.5,
    float("nan"),
    float("inf"),
    True,
    "8",
    "",
    [],
    [1, 2],
    {"a": 1},
    object(),
]


def test_any_setting_is_a_scheduler_or_a_value_error():
    chance = random.Random(0)
    refused = 0
    config = {key: value for key, value in MatryoshkaScheduler().config.items() if not key.startswith("_")}
    for _ in range(300):
        changed = {**config, chance.choice(sorted(config)): chance.choice(BAD_VALUES)}
        try:
            MatryoshkaScheduler.from_config(changed)
        except ValueError:
            refused += 1
    assert refused > 200


@pytest.mark.parametrize("config", [42, [1], MatryoshkaScheduler])
def test_a_config_of_another_kind_is_a_type_error(config):
    with pytest.raises(TypeError, match="The config of a scheduler is"):
        MatryoshkaScheduler.from_config(config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_train_timesteps": 10**12}, "`num_train_timesteps` is 1000000000000"),
        ({"trained_betas": "abc"}, "`trained_betas` is 'abc'"),
        ({"trained_betas": [[0.1], [0.1, 0.2]]}, "`trained_betas` is"),
        ({"clip_sample": "no"}, "`clip_sample` is 'no'; expected True or False"),
        ({"prediction_type": ["flow"]}, r"`prediction_type` is \['flow'\]; expected one of"),
        ({"shift_power": float("nan")}, "`shift_power` is nan"),
        ({"beta_start": "small"}, "`beta_start` is 'small'"),
    ],
)
def test_the_message_says_what_was_expected(change, message):
    with pytest.raises(ValueError, match=message):
        MatryoshkaScheduler(**change)


@pytest.mark.parametrize(
    "arguments",
    [
        {"num_inference_steps": 3.5},
        {"num_inference_steps": "5"},
        {"num_inference_steps": 0},
        {"num_inference_steps": True},
        {"num_inference_steps": float("nan")},
        {"timesteps": [5, float("inf")]},
        {"timesteps": [5, float("nan")]},
        {"timesteps": ["a", "b"]},
        {"timesteps": [[3], [2, 1]]},
        {"timesteps": 7},
        {"timesteps": 3 + 0j},
        {"timesteps": [3, 3]},
        {"timesteps": []},
        {},
    ],
    ids=str,
)
def test_bad_timesteps_are_refused_and_the_old_ones_stay(arguments):
    scheduler = MatryoshkaScheduler()
    scheduler.set_timesteps(4)
    before = scheduler.timesteps.tolist()
    with pytest.raises(ValueError, match=r"timesteps|num_inference_steps"):
        scheduler.set_timesteps(**arguments)
    assert scheduler.timesteps.tolist() == before
    assert scheduler.previous_timestep(before[0]) == before[1]


def good_step() -> dict[str, Any]:
    sample = [torch.randn(2, 3, 4, 4), torch.randn(1, 3, 8, 8)]
    return {"model_output": [torch.randn_like(level) for level in sample], "timestep": 500, "sample": sample}


BAD_STEPS: dict[str, tuple[dict[str, Any], str]] = {
    "infinite": ({"timestep": float("inf")}, "`timestep` is inf"),
    "not a number": ({"timestep": float("nan")}, "`timestep` is nan"),
    "infinite tensor": ({"timestep": torch.tensor(float("inf"))}, "`timestep` is inf"),
    "half": ({"timestep": 0.5}, r"`timestep` is 0\.5"),
    "none": ({"timestep": None}, "`timestep` is None"),
    "text": ({"timestep": "500"}, "`timestep` is '500'"),
    "flag": ({"timestep": True}, "`timestep` is True"),
    "several": ({"timestep": torch.tensor([1, 2])}, "pass a single number"),
    "beyond": ({"timestep": 1000}, "0 to 999"),
    "numpy sample": ({"sample": np.zeros((1, 3, 4, 4))}, "Expected a tensor or a list of tensors"),
    "whole sample": ({"sample": [torch.zeros(2, 3, 4, 4, dtype=torch.uint8)]}, "floating-point numbers"),
    "no output": ({"model_output": None}, "Expected a tensor or a list of tensors"),
    "other output": ({"model_output": torch.zeros(2, 3, 4, 4)}, "`model_output` has levels"),
    "eta": ({"eta": "much"}, "`eta` is 'much'"),
    "eta that is no number": ({"eta": float("nan")}, "`eta` is nan"),
    "generator": ({"eta": 1.0, "generator": 42}, "`generator` is of type int"),
    "generators": ({"eta": 1.0, "generator": [torch.Generator()]}, "list of 1 generators for a batch of 2"),
    "noise": ({"eta": 1.0, "variance_noise": torch.zeros(1)}, "`variance_noise` has levels"),
}


@pytest.mark.parametrize(("change", "message"), BAD_STEPS.values(), ids=list(BAD_STEPS))
def test_a_bad_step_is_refused_in_a_sentence(change, message):
    scheduler = MatryoshkaScheduler(base_sample_size=4)
    scheduler.set_timesteps(4)
    scheduler.step(**good_step())
    with pytest.raises((ValueError, TypeError), match=message):
        scheduler.step(**{**good_step(), **change})


@pytest.mark.parametrize(
    ("timesteps", "message"),
    [
        (None, "`timesteps` are of type NoneType"),
        ("5", "`timesteps` are of type str"),
        (torch.tensor([0.5]), "expected whole numbers"),
        (torch.tensor([True]), "expected whole numbers"),
        (torch.tensor([1000]), "expected 0 to 999"),
        (torch.tensor([1, 2, 3]), "one for each sample of"),
    ],
)
def test_noise_is_added_at_whole_timesteps_only(timesteps, message):
    sample = torch.randn(2, 3, 8, 8)
    with pytest.raises((ValueError, TypeError), match=message):
        MatryoshkaScheduler().add_noise(sample, torch.randn_like(sample), timesteps)


def test_noise_is_added_to_fractions_only():
    whole = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    with pytest.raises(TypeError, match="floating-point numbers"):
        MatryoshkaScheduler().add_noise(whole, torch.randn(2, 3, 8, 8), torch.tensor(5))
