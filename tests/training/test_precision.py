# SPDX-License-Identifier: Apache-2.0
from collections import Counter
from typing import get_args

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from diffusers_mdm.training.precision import DTYPES, check_precision, emulates_bf16, frozen_dtype
from diffusers_mdm.training.recipe.recipe import Precision
from tests.pipelines.tiny_pipeline import TEXT_WIDTH, make_unet


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


class WeightCasts(TorchDispatchMode):
    """Counts how often each parameter is converted to another dtype inside the block."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.names = {parameter.data_ptr(): name for name, parameter in model.named_parameters()}
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten._to_copy.default and args[0].data_ptr() in self.names:
            self.counts[self.names[args[0].data_ptr()]] += 1
        return function(*args, **(kwargs or {}))


def test_autocast_converts_each_weight_once_a_pass():
    """Also those that two levels share: torch keeps converted weights until the end of the block."""
    model = make_unet(share_time_embedding=(False, True)).train()
    sample, text = [torch.randn(2, 3, side, side) for side in (8, 16)], torch.randn(2, 5, TEXT_WIDTH)
    with WeightCasts(model) as casts:
        with torch.autocast("cpu", torch.bfloat16):
            predictions = model(sample, torch.tensor([1, 2]), text).sample
        sum(level.float().square().mean() for level in predictions).backward()
    assert len(casts.counts) > 100
    assert set(casts.counts.values()) == {1}
