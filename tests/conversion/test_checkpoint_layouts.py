# SPDX-License-Identifier: Apache-2.0
"""Weights are found wherever trainers put them, or the error says what to choose."""

import collections
import time

import pytest
import torch

from diffusers_mdm.conversion.apple_mdm import convert_apple_checkpoint
from diffusers_mdm.conversion.checkpoint_layouts import find_state_dict
from tests.conversion.recorded_models import config, contents

PLAIN = {"conv_in.weight": torch.ones(1), "inner_unet.conv_in.weight": torch.ones(2), "down.bias": torch.ones(3)}
OTHER = {name: tensor + 1 for name, tensor in PLAIN.items()}
OPTIMIZER = {"optimizer": {"state": {0: {"exp_avg": torch.ones(1)}}, "param_groups": [{"lr": 0.1}]}, "step": 3}


class Weights(dict):
    pass


def named(prefix: str, weights: dict = PLAIN) -> dict[str, torch.Tensor]:
    return {prefix + name: tensor for name, tensor in weights.items()}


@pytest.mark.parametrize(
    "checkpoint",
    [
        PLAIN,
        collections.OrderedDict(PLAIN),
        named("module."),
        named("_orig_mod."),
        named("_orig_mod.module."),
        named("module._orig_mod."),
        named("_fsdp_wrapped_module._checkpoint_wrapped_module."),
        {name.replace("down.", "down._orig_mod."): tensor for name, tensor in PLAIN.items()},
        named("model."),
        named("module.unet.", PLAIN) | {"module.text.weight": torch.ones(1)},
        *({key: PLAIN, **OPTIMIZER} for key in ("state_dict", "model", "ema", "anything")),
        {"ema": named("module."), **OPTIMIZER},
        {"trainer": {"ema_model": PLAIN}, **OPTIMIZER},
        {"state_dict": PLAIN, "same": PLAIN},
    ],
    ids=range(17),
)
def test_one_model_is_found_under_its_plain_names(checkpoint):
    found = find_state_dict(checkpoint)
    assert found.keys() == PLAIN.keys()
    assert all(found[name] is tensor for name, tensor in PLAIN.items())


@pytest.mark.parametrize(
    ("checkpoint", "keys"),
    [
        ({"model": OTHER, "ema": PLAIN}, ("model", "ema")),
        ({"state_dict": OTHER, "ema_state_dict": PLAIN}, ("state_dict", "ema_state_dict")),
        ({"state_dict": named("model.", OTHER) | named("ema.")}, ("state_dict.model", "state_dict.ema")),
        ({"a": {"model": OTHER}, "b": {"ema": PLAIN}}, ("a.model", "b.ema")),
    ],
    ids=range(4),
)
def test_one_of_several_models_is_chosen_by_the_key_that_the_error_names(checkpoint, keys):
    with pytest.raises(ValueError, match=rf"2 models, at '{keys[0]}', '{keys[1]}'; choose one.*--state_dict_key"):
        find_state_dict(checkpoint)
    found = find_state_dict(checkpoint, keys[1])
    assert all(found[name] is tensor for name, tensor in PLAIN.items())
    with pytest.raises(ValueError, match=rf"no weights of a supported model at 'other'; it has some at '{keys[0]}'"):
        find_state_dict(checkpoint, "other")


@pytest.mark.parametrize(
    ("checkpoint", "message"),
    [
        ({}, "no named tensors"),
        ({"state_dict": {}}, r"no weights of a supported model.*'state_dict' \(dict\)"),
        ({"weights": [torch.ones(1)]}, r"there is no conv_in\.weight.*'weights' \(list\)"),
        ({**PLAIN, "note": "text"}, "not tensors: note"),
        ({**PLAIN, 3: torch.ones(1)}, "no named tensors"),
        ({**PLAIN, "x" * 1000: torch.ones(1)}, "name of 1000 characters"),
        ({**PLAIN, **named("module.")}, "differ only in the prefixes"),
    ],
    ids=range(7),
)
def test_checkpoints_without_a_model_are_refused(checkpoint, message):
    with pytest.raises(ValueError, match=message):
        find_state_dict(checkpoint)


def test_hostile_sizes_take_no_time():
    start = time.process_time()
    itself: dict[str, object] = {}
    itself.update({str(number): itself for number in range(1000)})
    many = {str(number): number for number in range(200_000)}
    parts = "inner_unet." * 400_000
    for checkpoint in (
        itself,
        {str(number): many for number in range(1000)},
        {**PLAIN, parts + "conv_in.weight": torch.ones(1)},
        {parts + "xconv_in.weight": torch.ones(1)},
        {"module." * 400_000: torch.ones(1)},
        {**PLAIN, "a." * 400_000: torch.ones(1)},
    ):
        with pytest.raises(ValueError, match=r"no weights of a supported model|characters"):
            find_state_dict(checkpoint)
    assert time.process_time() - start < 30


def test_a_subclass_of_dict_holds_weights(tmp_path):
    weights = Weights(contents("unet")["state_dict"])
    weights.version = 1
    torch.save(Weights(model=weights, average=Weights()), tmp_path / "f.pth")
    converted = convert_apple_checkpoint(tmp_path / "f.pth", config("unet"))
    expected = convert_apple_checkpoint(config("unet").with_name("vis_model.pth")).unet.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in converted.unet.state_dict().items())


def test_own_weights_are_not_converted_again(tmp_path):
    native = convert_apple_checkpoint(config("unet").with_name("vis_model.pth")).unet.state_dict()
    torch.save(native, tmp_path / "f.pth")
    with pytest.raises(ValueError, match=r"own names.*from_single_file"):
        convert_apple_checkpoint(tmp_path / "f.pth", config("unet"))
