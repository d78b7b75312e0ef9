# SPDX-License-Identifier: Apache-2.0
"""LoRA weights are found under the names that other tools give them, or refused by name; none stays unfilled."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict

from diffusers_mdm import MDMPipeline
from diffusers_mdm.loaders.lora_names import name_lora_weights
from tests.pipelines.tiny_pipeline import make_unet


def trained(**settings: Any) -> dict[str, torch.Tensor]:
    """Weights of an adapter by the names of the model's layers."""
    unet = make_unet()
    unet.add_adapter(LoraConfig(**{"r": 2, "target_modules": ["to_q", "to_out.0", "conv1"], **settings}))
    with torch.no_grad():
        for name, value in unet.named_parameters():
            if "lora_" in name:
                value.copy_(torch.randn(value.shape))
    return dict(get_peft_model_state_dict(unet))


def with_adapter_name(key: str) -> str:
    return key.replace("lora_A.", "lora_A.default.").replace("lora_B.", "lora_B.default.")


def as_kohya(key: str) -> str:
    layer, _, part = key.partition(".lora_")
    return f"lora_unet_{layer.replace('.', '_')}.lora_{'down' if part[0] == 'A' else 'up'}.weight"


RENAMED: dict[str, Callable[[str], str]] = {
    "ours": lambda key: f"unet.{key}",
    "no prefix": lambda key: key,
    "peft": lambda key: f"base_model.model.{key}",
    "peft in the unet": lambda key: f"unet.base_model.model.{key}",
    "adapter name": lambda key: f"unet.{with_adapter_name(key)}",
    "peft in memory": lambda key: f"base_model.model.{with_adapter_name(key)}",
    "compiled": lambda key: f"unet._orig_mod.{key}",
    "compiled layer": lambda key: f"unet.{key.replace('.lora_', '._orig_mod.lora_')}",
    "distributed": lambda key: f"module.{key}",
    "kohya": as_kohya,
    "underscores alone": lambda key: f"lora_unet_{key.replace('.', '_')}",
    "older diffusers": lambda key: f"unet.{key.replace('lora_A', 'lora.down').replace('lora_B', 'lora.up')}",
}


@pytest.mark.parametrize("rename", RENAMED.values(), ids=list(RENAMED))
def test_names_of_other_tools_are_read(rename):
    weights = trained()
    named = name_lora_weights({rename(key): value for key, value in weights.items()}, make_unet())
    assert not named.alphas
    assert {key: id(value) for key, value in named.weights.items()} == {
        f"unet.{key}": id(value) for key, value in weights.items()
    }


@pytest.mark.parametrize("kind", ["kohya", "no prefix"])
def test_they_load_filled_and_whole(pipe, kind):
    weights = trained()
    pipe.load_lora_weights({RENAMED[kind](key): value for key, value in weights.items()})
    loaded = get_peft_model_state_dict(pipe.unet, adapter_name="default_0")
    torch.testing.assert_close(dict(loaded), weights, rtol=0, atol=0)


def test_alphas_of_kohya_are_kept(pipe):
    weights = trained()
    layers = {as_kohya(key).split(".")[0] for key in weights}
    alphas = {f"{layer}.alpha": torch.tensor(0.5 if "to_q" in layer else 1.0) for layer in layers}
    pipe.load_lora_weights({as_kohya(key): value for key, value in weights.items()} | alphas)
    scales = {
        name: module.scaling["default_0"] for name, module in pipe.unet.named_modules() if hasattr(module, "scaling")
    }
    assert len(scales) == len(layers)
    assert all(scale == (0.25 if name.endswith("to_q") else 0.5) for name, scale in scales.items())


def test_magnitudes_of_dora_are_read(pipe):
    weights = trained(use_dora=True)
    pipe.load_lora_weights({f"base_model.model.{key}": value for key, value in weights.items()})
    loaded = get_peft_model_state_dict(pipe.unet, adapter_name="default_0")
    torch.testing.assert_close(dict(loaded), weights, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("unet.levels.7.encoder.conv_in.lora_A.weight", r"levels\.7"),
        ("text_encoder.encoder.block.0.lora_A.weight", r"text_encoder.*text encoders, cannot be loaded"),
        ("lora_te_text_model.lora_down.weight", "lora_te_text_model"),
        ("unet.lora_without_a_layer", "lora_without_a_layer"),
    ],
)
def test_unknown_names_are_refused_by_name(pipe, key, message):
    weights = {f"unet.{name}": value for name, value in trained().items()}
    with pytest.raises(ValueError, match=message):
        pipe.load_lora_weights({**weights, key: torch.zeros(2, 2)})
    assert not getattr(pipe.unet, "peft_config", {})


def test_halves_and_other_sizes_are_refused(pipe):
    weights = {f"unet.{name}": value for name, value in trained().items()}
    first = next(key for key in weights if "lora_B" in key)
    with pytest.raises(ValueError, match="comes without"):
        pipe.load_lora_weights({key: value for key, value in weights.items() if key != first})
    with pytest.raises(ValueError, match="model of a different size"):
        pipe.load_lora_weights({**weights, first: torch.zeros(5, 2)})


@pytest.mark.parametrize("low_cpu_mem_usage", [True, False])
def test_settings_that_ask_for_more_than_the_file_has_leave_nothing_behind(pipe, low_cpu_mem_usage):
    weights = {f"unet.{name}": value for name, value in trained(use_dora=True).items() if "magnitude" not in name}
    settings = LoraConfig(r=2, target_modules=["to_q", "to_out.0", "conv1"], use_dora=True).to_dict()
    settings = {f"unet.{name}": value for name, value in settings.items() if value is not None}
    with pytest.raises(ValueError, match=r"does not have, e\.g\. .*lora_magnitude_vector.*Is the file complete"):
        MDMPipeline.load_lora_into_unet(weights, pipe.unet, metadata=settings, low_cpu_mem_usage=low_cpu_mem_usage)
    assert not any("lora" in name for name, _ in pipe.unet.named_parameters())
