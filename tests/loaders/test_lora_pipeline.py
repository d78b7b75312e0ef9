# SPDX-License-Identifier: Apache-2.0
"""LoRA can be added, saved, loaded, scaled, weighted, fused and removed, and leaves nothing behind."""

import pytest
import torch
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors import safe_open

from diffusers_mdm import MDMPipeline
from tests.pipelines.tiny_pipeline import draw, make_pipeline

TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]
# Fused weights are summed in another order. In float64; in float32 the random network makes it 1e-4.
FUSED_TOLERANCE = 1e-9


def add_lora(pipe: MDMPipeline, name: str = "style", seed: int = 0, rank: int = 4, alpha: int = 8) -> None:
    """Add an adapter with random weights, so that it does something."""
    pipe.unet.add_adapter(LoraConfig(r=rank, lora_alpha=alpha, target_modules=TARGETS), adapter_name=name)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, parameter in pipe.unet.named_parameters():
            if f".{name}." in key:
                parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))


def save_lora(pipe: MDMPipeline, folder, name: str = "style", **kwargs) -> None:
    pipe.save_lora_weights(
        folder,
        unet_lora_layers=get_peft_model_state_dict(pipe.unet, adapter_name=name),
        unet_lora_adapter_metadata=pipe.unet.peft_config[name].to_dict(),
        **kwargs,
    )


@pytest.fixture
def plain(pipe) -> torch.Tensor:
    return draw(pipe)


def test_it_changes_images_and_unloading_restores_them_bit_for_bit(pipe, plain):
    add_lora(pipe)
    assert not torch.allclose(draw(pipe), plain, atol=1e-3)
    pipe.unload_lora_weights()
    assert torch.equal(draw(pipe), plain)
    assert not [name for name, _ in pipe.unet.named_parameters() if "lora" in name]


@pytest.mark.parametrize("as_dict", [False, True])
def test_saved_and_loaded_it_draws_the_same(pipe, plain, tmp_path, as_dict):
    add_lora(pipe)
    changed = draw(pipe)
    save_lora(pipe, tmp_path)
    path = tmp_path / "pytorch_lora_weights.safetensors"
    with safe_open(path, "pt") as weights:
        keys = set(weights.keys())
    assert all(key.startswith("unet.levels.") and key.endswith((".lora_A.weight", ".lora_B.weight")) for key in keys)

    other = make_pipeline()
    if as_dict:
        # Without the file's metadata alpha is taken to be the rank.
        state_dict = MDMPipeline.lora_state_dict(path)
        other.load_lora_weights(state_dict)
        assert len(state_dict) == len(keys)
        assert not torch.equal(draw(other), changed)
        assert other.get_active_adapters() == ["default_0"]
    else:
        other.load_lora_weights(tmp_path, adapter_name="again")
        torch.testing.assert_close(draw(other), changed, rtol=0, atol=1e-4)
        assert other.unet.peft_config["again"].lora_alpha == 8
        assert other.get_list_adapters() == {"unet": ["again"]}
    other.unload_lora_weights()
    assert torch.equal(draw(other), plain)


def test_metadata_comes_back(pipe, tmp_path):
    add_lora(pipe, rank=2, alpha=6)
    save_lora(pipe, tmp_path)
    state_dict, metadata = MDMPipeline.lora_state_dict(tmp_path, return_lora_metadata=True)
    assert metadata["unet.r"] == 2
    assert metadata["unet.lora_alpha"] == 6
    assert all(name.startswith("unet.") for name in state_dict)


def test_other_file_names_and_pickles(pipe, tmp_path):
    add_lora(pipe, alpha=4)
    changed = draw(pipe)
    layers = get_peft_model_state_dict(pipe.unet, adapter_name="style")
    pipe.save_lora_weights(tmp_path, layers, weight_name="mine.safetensors")
    pipe.save_lora_weights(tmp_path / "pickled", layers, safe_serialization=False)
    pipe.save_lora_weights(tmp_path / "nothing", layers, is_main_process=False)
    assert not (tmp_path / "nothing").exists()
    for source, options in (
        (tmp_path, {"weight_name": "mine.safetensors"}),
        (tmp_path / "mine.safetensors", {}),
        (tmp_path / "pickled" / "pytorch_lora_weights.bin", {}),
    ):
        other = make_pipeline()
        other.load_lora_weights(str(source), **options)
        torch.testing.assert_close(draw(other), changed, rtol=0, atol=1e-4)


def test_scale_at_call_time(pipe, plain):
    add_lora(pipe)
    full = draw(pipe)
    assert torch.equal(draw(pipe, cross_attention_kwargs={"scale": 0.0}), plain)
    half = draw(pipe, cross_attention_kwargs={"scale": 0.5})
    assert not torch.equal(half, plain)
    assert not torch.equal(half, full)
    assert torch.equal(draw(pipe), full)


def test_adapters_are_chosen_and_weighted(pipe, plain):
    add_lora(pipe, "one", seed=1)
    one = draw(pipe)
    add_lora(pipe, "two", seed=2)
    pipe.set_adapters(["one", "two"])
    assert pipe.get_active_adapters() == ["one", "two"]
    both = draw(pipe)
    pipe.set_adapters(["one", "two"], adapter_weights=[1.0, 0.0])
    torch.testing.assert_close(draw(pipe), one, atol=1e-5, rtol=0)
    assert not torch.allclose(both, one, atol=1e-3)
    pipe.set_adapters("one", {"unet": 0.0})
    assert torch.equal(draw(pipe), plain)

    pipe.disable_lora()
    assert torch.equal(draw(pipe), plain)
    pipe.enable_lora()
    pipe.delete_adapters("two")
    assert pipe.get_list_adapters() == {"unet": ["one"]}


def test_fused_and_unfused(pipe):
    pipe.to(dtype=torch.float64)
    plain = draw(pipe)
    add_lora(pipe)
    changed, half = draw(pipe), draw(pipe, cross_attention_kwargs={"scale": 0.5})
    pipe.fuse_lora()
    assert pipe.num_fused_loras == 1
    torch.testing.assert_close(draw(pipe), changed, atol=FUSED_TOLERANCE, rtol=0)
    pipe.unfuse_lora()
    assert pipe.num_fused_loras == 0
    torch.testing.assert_close(draw(pipe), changed, atol=FUSED_TOLERANCE, rtol=0)

    pipe.fuse_lora(lora_scale=0.5, safe_fusing=True)
    torch.testing.assert_close(draw(pipe), half, atol=FUSED_TOLERANCE, rtol=0)
    pipe.unload_lora_weights()
    torch.testing.assert_close(draw(pipe), half, atol=FUSED_TOLERANCE, rtol=0)
    assert not torch.allclose(draw(pipe), plain, atol=1e-3)


def test_hotswap(pipe, tmp_path):
    add_lora(pipe, "one", seed=1)
    save_lora(pipe, tmp_path / "one", "one")
    one = draw(pipe)
    pipe.unload_lora_weights()
    add_lora(pipe, "two", seed=2)
    save_lora(pipe, tmp_path / "two", "two")
    two = draw(pipe)

    other = make_pipeline()
    other.load_lora_weights(tmp_path / "one", adapter_name="style")
    # Weights lie elsewhere in memory than those that were saved, which may change the order of sums.
    torch.testing.assert_close(draw(other), one, rtol=0, atol=1e-4)
    other.load_lora_weights(tmp_path / "two", adapter_name="style", hotswap=True)
    torch.testing.assert_close(draw(other), two, rtol=0, atol=1e-4)
    assert not torch.allclose(one, two, atol=1e-2)


def test_what_is_no_lora_is_refused(pipe):
    with pytest.raises(ValueError, match=r"every name has to contain 'lora'.*1 of 1 do not.*conv.weight"):
        pipe.load_lora_weights({"unet.conv.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match="0 of 0 do not"):
        pipe.load_lora_weights({})
    with pytest.raises(ValueError, match="nothing to save"):
        pipe.save_lora_weights("nowhere")
    with pytest.raises(ValueError, match=r"Unknown arguments \['adapter'\]"):
        pipe.load_lora_weights({}, adapter="typo")
