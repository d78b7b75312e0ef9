# SPDX-License-Identifier: Apache-2.0
"""Attention against its formula, and as diffusers uses it: processors, backends, fusing."""

import pytest
import torch

from diffusers_mdm.models.forward_inputs import TextConditioning, masked_mean
from diffusers_mdm.models.layers import MatryoshkaAttnProcessor, SpatialAttention
from tests.models.tiny_models import softmax_attention

ROUNDING = {"rtol": 0, "atol": 2e-5}
SAME = {"rtol": 0, "atol": 0}


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
