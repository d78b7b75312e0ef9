# SPDX-License-Identifier: Apache-2.0
"""Strengths of adapters by part of the network: numbers by parts of layer names."""

import pytest
from peft import LoraConfig

from diffusers_mdm import NestedUNetModel
from tests.pipelines.tiny_pipeline import make_unet


@pytest.fixture
def adapted() -> NestedUNetModel:
    """With adapters on layers of levels and on some whose names have one part."""
    unet = make_unet(num_text_layers=1)
    unet.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=["to_q", "encoder_hid_proj"]), "style")
    return unet


def strengths(unet: NestedUNetModel) -> dict[str, float]:
    return {name: module.scaling["style"] for name, module in unet.named_modules() if hasattr(module, "scaling")}


@pytest.mark.parametrize("weights", [0.5, None, {"levels.0": 0.5}, [{"decoder": 3.0, "levels.0": 0.5}]])
def test_the_first_part_of_a_name_counts(adapted, weights):
    adapted.set_adapters("style", weights)
    parts = weights[0] if isinstance(weights, list) else weights
    for name, strength in strengths(adapted).items():
        expected = parts if isinstance(parts, float) else 1.0
        if isinstance(parts, dict):
            expected = next((value for part, value in parts.items() if part in name), 1.0)
        assert strength == expected


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (
            {"levels.0": {"encoder": 0.5}},
            r"strength of 'levels\.0' is .*; expected a number: the dict of strengths "
            r"cannot be nested",
        ),
        ({"levels.0": [0.5, 1.0]}, "cannot be nested"),
        ({"levels.9": 0.5}, r"No layer with an adapter has 'levels\.9'"),
        ({"levels.0": "strong"}, "is 'strong'"),
        ("strong", "is 'strong'"),
        (float("nan"), "is nan"),
    ],
)
def test_other_strengths_are_refused_and_change_nothing(adapted, weights, message):
    before = strengths(adapted)
    with pytest.raises(ValueError, match=message):
        adapted.set_adapters("style", weights)
    assert strengths(adapted) == before
