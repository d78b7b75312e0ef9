# SPDX-License-Identifier: Apache-2.0
from typing import get_args

import pytest
import torch

from diffusers_mdm.training.precision import DTYPES, check_precision, emulates_bf16, frozen_dtype
from diffusers_mdm.training.recipe.recipe import Precision


@pytest.mark.parametrize("name", get_args(Precision))
def test_frozen_weights_have_the_precision_of_the_run(name):
    assert frozen_dtype(name) == (torch.float32 if name == "no" else DTYPES[name])


def without_accelerator(monkeypatch, **units):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: units, raising=False)


@pytest.mark.parametrize(
    ("units", "emulated"),
    [
        ({"architecture": "x86_64", "avx2": True, "amx_bf16": False, "avx512_bf16": False}, True),
        ({"architecture": "x86_64", "amx_bf16": False, "avx512_bf16": True}, False),
        ({"architecture": "x86_64", "amx_bf16": True, "avx512_bf16": True}, False),
        ({"architecture": "aarch64"}, False),
        ({}, False),
    ],
)
def test_bf16_is_refused_where_it_is_emulated_unless_it_was_asked_for(units, emulated, monkeypatch):
    without_accelerator(monkeypatch, **units)
    assert emulates_bf16() == emulated
    check_precision("no", is_asked_for=False)
    check_precision("bf16", is_asked_for=True)
    if emulated:
        with pytest.raises(ValueError, match=r"no units for bf16 .* pass --mixed_precision no"):
            check_precision("bf16", is_asked_for=False)
    else:
        check_precision("bf16", is_asked_for=False)
