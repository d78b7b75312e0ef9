# SPDX-License-Identifier: Apache-2.0
"""Layers against their formulas and diffusers' own; attention as diffusers uses it: processors, backends, fusing."""

import pytest
import torch
import torch.nn.functional as F
from diffusers.models.resnet import ResnetBlock2D
from peft import LoraConfig, inject_adapter_in_model
from torch import nn

from diffusers_mdm.models.forward_inputs import TextConditioning, masked_mean
from diffusers_mdm.models.layers import (
    MatryoshkaAttnProcessor,
    ResidualLayer,
    SpatialAttention,
    Upsample,
    norm_silu,
    normalize,
    upsampling_kernel,
)
from tests.models.tiny_models import softmax_attention

ROUNDING = {"rtol": 0, "atol": 2e-5}
SAME = {"rtol": 0, "atol": 0}

FORMATS = [torch.contiguous_format, torch.channels_last]


def norm_of(channels: int, num_groups: int) -> nn.GroupNorm:
    norm = nn.GroupNorm(num_groups, channels).eval()
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return norm


@pytest.mark.parametrize("offset", [0.0, 3.0])
@pytest.mark.parametrize("memory_format", FORMATS)
@torch.no_grad()
def test_norms_keep_their_digits_on_large_feature_maps(memory_format, offset):
    norm = norm_of(8, 4)
    states = (torch.randn(2, 8, 300, 200) + offset).to(memory_format=memory_format)
    exact = F.group_norm(states.double(), 4, norm.weight.double(), norm.bias.double(), norm.eps)
    torch.testing.assert_close(normalize(norm, states).double(), exact, rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [(4, 4), (40, 33)])
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("gradients", [False, True])
def test_norm_scale_shift_and_activation(memory_format, gradients, size):
    norm, scale, shift = norm_of(8, 2), torch.randn(3, 8), torch.randn(3, 8)
    states = torch.randn(3, 8, *size).to(memory_format=memory_format)
    before = states.clone()
    with torch.set_grad_enabled(gradients):
        normed = norm(states) * (1 + scale[:, :, None, None]) + shift[:, :, None, None]
        torch.testing.assert_close(norm_silu(norm, states, scale, shift), F.silu(normed), **ROUNDING)
        made = norm_silu(norm, states)
        torch.testing.assert_close(made, F.silu(norm(states)), **ROUNDING)
    assert made.is_contiguous(memory_format=memory_format)
    assert torch.equal(states, before)


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("channels", [(8, 8), (8, 16)])
def test_a_residual_layer_is_that_of_diffusers(memory_format, channels):
    ours = ResidualLayer(*channels, embed_dim=6, norm_num_groups=4, norm_eps=1e-5, dropout=0.0)
    theirs = ResnetBlock2D(
        in_channels=channels[0],
        out_channels=channels[1],
        temb_channels=6,
        groups=4,
        eps=1e-5,
        time_embedding_norm="scale_shift",
    )
    theirs.load_state_dict(ours.state_dict())
    embedding = torch.randn(2, 6)
    states = torch.randn(2, channels[0], 6, 4).to(memory_format=memory_format)
    expected = theirs(states, embedding)
    torch.testing.assert_close(ours(states, F.silu(embedding)), expected, **ROUNDING)
    before = states.clone()
    with torch.no_grad():
        torch.testing.assert_close(ours(states, F.silu(embedding)), expected, **ROUNDING)
    assert torch.equal(states, before)


@pytest.mark.parametrize("memory_format", FORMATS)
def test_doubled_pixels_are_convolved_with_fewer_operations(memory_format):
    layer = Upsample(4).to(memory_format=memory_format)
    states = torch.randn(2, 4, 16, 18).to(memory_format=memory_format)
    assert layer.saves_operations(states)
    assert not layer.saves_operations(states[:, :, :4])
    expected = layer.conv(F.interpolate(states, scale_factor=2.0, mode="nearest"))
    torch.testing.assert_close(layer(states), expected, **ROUNDING)
    assert upsampling_kernel(layer.conv.weight).shape == (4, 4, 4, 4)
    layer(states).square().sum().backward()
    own = layer.conv.weight.grad.clone()
    layer.zero_grad()
    expected.square().sum().backward()
    torch.testing.assert_close(own, layer.conv.weight.grad, rtol=1e-4, atol=1e-4)


def test_an_adapter_on_doubled_pixels_counts():
    layer, states = Upsample(4), torch.randn(1, 4, 32, 32)
    inject_adapter_in_model(LoraConfig(r=2, target_modules=["conv"], init_lora_weights=False), layer)
    doubled = F.interpolate(states, scale_factor=2.0, mode="nearest")
    torch.testing.assert_close(layer(states), layer.conv(doubled), **ROUNDING)
    assert not torch.allclose(layer(states), layer.conv.base_layer(doubled), atol=1e-3)


@torch.no_grad()
def test_two_softmaxes_share_one_query():
    layer = SpatialAttention(16, 4, 6, norm_num_groups=4, norm_eps=1e-5, has_ffn=False)
    text = TextConditioning(
        torch.randn(2, 5, 6), torch.zeros(2, 1), torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]) > 0
    )
    states = torch.randn(2, 16, 3, 2)
    tokens = layer.norm(states).flatten(2).transpose(1, 2)
    query, key, value = (layer.attn.split_heads(part) for part in layer.attn.project(tokens))
    own = softmax_attention(query, key, value)
    other = softmax_attention(query, *layer.attn.text_key_value(text), text.attention_mask)
    expected = layer.attn.to_out[0]((own + other).float().flatten(2)).transpose(1, 2).unflatten(2, (3, 2)) + states
    torch.testing.assert_close(layer(states, text), expected, **ROUNDING)


def test_masked_mean():
    states = torch.tensor([[[1.0], [3.0], [100.0]], [[2.0], [2.0], [2.0]]])
    mask = torch.tensor([[True, True, False], [False, False, False]])
    torch.testing.assert_close(masked_mean(states, mask), torch.tensor([[2.0], [0.0]]))
    torch.testing.assert_close(masked_mean(states, None), states.mean(dim=1))


class CountingProcessor(MatryoshkaAttnProcessor):
    """The default processor, counting its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, *args, **kwargs):
        self.calls += 1
        return super().__call__(*args, **kwargs)


@torch.no_grad()
def test_processors_are_replaceable(model, inputs):
    expected = model(**inputs).sample
    names = set(model.attn_processors)
    # Level 0: two attentions after each of 2 (down) and 3 (up) layers of the coarse resolution, one in the middle;
    # level 1: one after each of 1 and 2 layers; one text layer.
    assert len(names) == 2 * 2 + 2 * 3 + 1 + 1 + 2 + 1
    counting = CountingProcessor()
    model.set_attn_processor(counting)
    torch.testing.assert_close(model(**inputs).sample, expected, **SAME)
    assert counting.calls == len(names)
    model.set_attn_processor({name: MatryoshkaAttnProcessor() for name in names})
    with pytest.raises(ValueError, match="number of processors"):
        model.set_attn_processor({next(iter(names)): MatryoshkaAttnProcessor()})


@torch.no_grad()
@pytest.mark.parametrize("backend", ["native", "_native_math"])
def test_host_backends_reach_every_layer(model, inputs, backend):
    expected = model(**inputs).sample
    model.set_attention_backend(backend)
    backends = {processor._attention_backend.value for processor in model.attn_processors.values()}
    assert backends == {backend}
    torch.testing.assert_close(model(**inputs).sample, expected, **ROUNDING)
    # diffusers also makes a backend that is set the default of the process; leave its own behind.
    model.set_attention_backend("native")
    torch.testing.assert_close(model(**inputs).sample, expected, **SAME)


@torch.no_grad()
def test_fusing_keeps_the_numbers_and_can_be_undone(model, inputs):
    expected, names = model(**inputs).sample, set(model.state_dict())
    model.fuse_qkv_projections()
    assert any("to_qkv" in name for name in model.state_dict())
    torch.testing.assert_close(model(**inputs).sample, expected, **ROUNDING)
    model.unfuse_qkv_projections()
    assert set(model.state_dict()) == names
    torch.testing.assert_close(model(**inputs).sample, expected, **SAME)
