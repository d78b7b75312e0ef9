# SPDX-License-Identifier: Apache-2.0
"""The model behaves like one of diffusers' own: saving, casting, compiling, checkpointing, offloading, LoRA, EMA."""

import json
from pathlib import Path

import pytest
import torch
from accelerate import init_empty_weights
from diffusers.training_utils import EMAModel
from peft import LoraConfig
from torch.utils.checkpoint import checkpoint

from diffusers_mdm import NestedUNetModel

SAME = {"rtol": 0, "atol": 0}
ROUNDING = {"rtol": 0, "atol": 2e-5}
NAMES = Path(__file__).parent.parent / "fixtures" / "parameter_names.json"


def test_parameter_names_are_frozen(model):
    """Names of parameters are a promise to saved files; change them only with a converter."""
    assert list(model.state_dict()) == json.loads(NAMES.read_text())


def test_config_keys_are_frozen(model):
    """Keys of the config are a promise to saved files, too."""
    assert sorted(key for key in model.config if not key.startswith("_")) == [
        "attention_layers_per_block",
        "attention_norm_num_groups",
        "block_out_channels",
        "cross_attention_dim",
        "dropout",
        "encoder_hid_dim",
        "has_attention_ffn",
        "has_mid_block",
        "in_channels",
        "layers_per_block",
        "micro_conditioning_defaults",
        "micro_conditioning_keys",
        "norm_eps",
        "norm_num_groups",
        "normalize_input",
        "num_attention_heads",
        "num_class_embeds",
        "num_frames",
        "num_text_layers",
        "out_channels",
        "output_bound",
        "patch_size",
        "sample_size",
        "share_blocks",
        "share_time_embedding",
        "temporal_downsample",
        "temporal_layers_per_block",
        "temporal_rotary",
        "tiled_adapters",
        "time_embed_dim",
        "use_cross_attention_mask",
    ]


def test_no_config_key_is_a_submodule(model):
    assert not set(model.config) & {name for name, _ in model.named_children()}


@torch.no_grad()
@pytest.mark.parametrize("save", [{}, {"max_shard_size": "100KB"}, {"variant": "fp16"}])
def test_save_and_load_keep_every_bit(model, inputs, tmp_path, save):
    model.save_pretrained(tmp_path, **save)
    weights = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert len(weights) > 1 if "max_shard_size" in save else len(weights) == 1
    loaded = NestedUNetModel.from_pretrained(tmp_path, variant=save.get("variant")).eval()
    for key, value in json.loads(json.dumps(dict(model.config))).items():
        assert key.startswith("_") or loaded.config[key] == value
    torch.testing.assert_close(loaded(**inputs).sample, model(**inputs).sample, **SAME)


def test_from_config_rebuilds_the_same_parameters(model):
    rebuilt = NestedUNetModel.from_config(model.config)
    assert list(rebuilt.state_dict()) == list(model.state_dict())
    with init_empty_weights():
        empty = NestedUNetModel.from_config(model.config)
    assert {parameter.device.type for parameter in empty.parameters()} == {"meta"}


@torch.no_grad()
@pytest.mark.parametrize(("dtype", "bound"), [(torch.bfloat16, 0.06), (torch.float16, 0.01)])
def test_half_precision_is_near(model, inputs, tmp_path, dtype, bound):
    """Predictions have a spread of about 1; the bounds are about eight units of each format's rounding."""
    expected = model(**inputs).sample
    model.save_pretrained(tmp_path)
    half = NestedUNetModel.from_pretrained(tmp_path, dtype=dtype).eval()
    output = half(
        **{
            **inputs,
            "sample": [level.to(dtype) for level in inputs["sample"]],
            "encoder_hidden_states": inputs["encoder_hidden_states"].to(dtype),
        }
    ).sample
    for level, reference in zip(output, expected, strict=True):
        assert level.dtype == dtype
        assert (level.float() - reference).abs().max() < bound * reference.abs().max()


@pytest.mark.slow
@torch.no_grad()
def test_compiles_as_one_graph(model, inputs):
    expected = model(**inputs).sample
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(**inputs).sample, expected, **ROUNDING)


@pytest.mark.slow
@torch.no_grad()
def test_compiles_with_the_default_compiler(model, inputs):
    expected = model(**inputs).sample
    compiled = torch.compile(model, fullgraph=True)
    torch.testing.assert_close(compiled(**inputs).sample, expected, **ROUNDING)


@pytest.mark.slow
@torch.no_grad()
def test_repeated_blocks_compile(model, inputs):
    expected = model(**inputs).sample
    model.compile_repeated_blocks(fullgraph=True, backend="eager")
    torch.testing.assert_close(model(**inputs).sample, expected, **ROUNDING)


def gradients(model: NestedUNetModel, inputs: dict) -> dict[str, torch.Tensor]:
    model.zero_grad()
    sum((level**2).mean() for level in model(**inputs).sample).backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def test_gradient_checkpointing_gives_identical_gradients(model, inputs):
    model.train()
    expected = gradients(model, inputs)
    model.enable_gradient_checkpointing()
    assert model.is_gradient_checkpointing
    blocks = {type(module).__name__ for module in model.modules() if getattr(module, "gradient_checkpointing", False)}
    assert {"DownBlock", "MidBlock", "UpBlock"} <= blocks
    torch.testing.assert_close(gradients(model, inputs), expected, **SAME)
    model.disable_gradient_checkpointing()
    torch.testing.assert_close(gradients(model, inputs), expected, **SAME)


def test_reentrant_checkpointing_gives_the_same_gradients(model, inputs):
    """It finds gradients for tensors among a layer's arguments only, and runs through each part of a graph once."""
    model.train()
    expected = gradients(model, inputs)
    model.enable_gradient_checkpointing(lambda layer, *args: checkpoint(layer, *args, use_reentrant=True))
    torch.testing.assert_close(gradients(model, inputs), expected, rtol=1e-4, atol=1e-6)


def test_every_parameter_learns(model, inputs):
    """The adapters of a fresh model are zero, but not here: no parameter is dead."""
    model.train()
    assert all(gradient.abs().max() > 0 for gradient in gradients(model, inputs).values())


@torch.no_grad()
def test_layerwise_casting_stores_small_and_computes_near(model, inputs):
    expected = model(**inputs).sample
    model.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    stored = {parameter.dtype for name, parameter in model.named_parameters() if "norm" not in name}
    assert stored == {torch.float8_e4m3fn}
    assert {p.dtype for name, p in model.named_parameters() if "norm" in name} == {torch.float32}
    for level, reference in zip(model(**inputs).sample, expected, strict=True):
        # Eight-bit floats carry three bits after the leading one; errors of many layers partly cancel.
        assert (level - reference).std() < 0.25 * reference.std()


@torch.no_grad()
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="group offloading moves weights to an accelerator")
@pytest.mark.parametrize("offload_type", ["block_level", "leaf_level"])
def test_group_offloading(model, inputs, offload_type):
    def on_gpu(value):
        if isinstance(value, dict):
            return {key: on_gpu(item) for key, item in value.items()}
        return [item.cuda() for item in value] if isinstance(value, list) else value.cuda()

    expected = model.cuda()(**on_gpu(inputs)).sample
    model.cpu().enable_group_offload(torch.device("cuda"), offload_type=offload_type, num_blocks_per_group=1)
    torch.testing.assert_close(model(**on_gpu(inputs)).sample, expected, rtol=0, atol=1e-4)


@torch.no_grad()
def test_levels_can_live_apart(model, inputs, tmp_path):
    """A device map may put levels on different devices; here each is dispatched by accelerate's own hooks."""
    expected = model(**inputs).sample
    model.save_pretrained(tmp_path)
    dispatched = NestedUNetModel.from_pretrained(tmp_path, device_map={"": "cpu"}).eval()
    torch.testing.assert_close(dispatched(**inputs).sample, expected, **SAME)


@torch.no_grad()
def test_lora_is_added_scaled_saved_loaded_and_removed(model, inputs, tmp_path):
    expected = model(**inputs).sample
    targets = ["to_q", "to_k", "to_v", "to_out.0", "add_k_proj", "add_v_proj"]
    model.add_adapter(LoraConfig(r=2, lora_alpha=4, target_modules=targets, init_lora_weights=False), "style")
    adapted = model(**inputs).sample
    assert (adapted[0] - expected[0]).abs().max() > 1e-3
    torch.testing.assert_close(model(**inputs, cross_attention_kwargs={"scale": 0.0}).sample, expected, **ROUNDING)
    half = model(**inputs, cross_attention_kwargs={"scale": 0.5}).sample
    assert 1e-4 < (half[0] - expected[0]).abs().max() < (adapted[0] - expected[0]).abs().max()

    model.save_lora_adapter(tmp_path, "style")
    model.unload_lora()
    torch.testing.assert_close(model(**inputs).sample, expected, **SAME)
    model.load_lora_adapter(
        tmp_path, prefix=None, adapter_name="again", weight_name="pytorch_lora_weights.safetensors"
    )
    torch.testing.assert_close(model(**inputs).sample, adapted, **ROUNDING)
    model.fuse_lora()
    torch.testing.assert_close(model(**inputs).sample, adapted, **ROUNDING)
    model.unfuse_lora()
    model.disable_adapters()
    torch.testing.assert_close(model(**inputs).sample, expected, **ROUNDING)
    model.delete_adapters("again")
    model.unload_lora()
    assert not any("lora" in name for name in model.state_dict())


def test_lora_strength_by_part_of_the_network(model):
    """A dict of strengths names parts of module names; text layers, which are in no level, keep 1."""
    model.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=["to_q", "to_k", "to_v", "to_out.0"]), "style")
    for weights in ({"down": 5.0}, {"up": 5.0}, {"mid": 5.0, "down": 2.0}):
        model.set_adapters("style", weights)
        scales = {name: layer.scaling["style"] for name, layer in model.named_modules() if hasattr(layer, "scaling")}
        assert all(scale == 1.0 for name, scale in scales.items() if name.startswith("text_layers"))
        for part, strength in weights.items():
            assert {scale for name, scale in scales.items() if part in name} == {strength}


def test_moving_average_round_trip(model, tmp_path):
    average = EMAModel(model.parameters(), model_cls=NestedUNetModel, model_config=model.config)
    average.save_pretrained(tmp_path)
    loaded = EMAModel.from_pretrained(tmp_path, NestedUNetModel)
    assert all(torch.equal(a, b) for a, b in zip(average.shadow_params, loaded.shadow_params, strict=True))


def test_missing_attributes_are_reported_as_in_diffusers(model):
    with pytest.raises(AttributeError, match="does_not_exist"):
        _ = model.does_not_exist
