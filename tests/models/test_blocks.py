# SPDX-License-Identifier: Apache-2.0
"""Blocks: skips of the right shapes, silent branches, layers that are borrowed, and rows for frames."""

import pytest
import torch
from torch import nn

from diffusers_mdm.models.blocks import (
    BlockAttentions,
    BlockSettings,
    DownBlock,
    LayerBorrower,
    MidBlock,
    UpBlock,
    repeat_for_frames,
)

SETTINGS = BlockSettings(
    time_embed_dim=16,
    norm_num_groups=4,
    norm_eps=1e-5,
    dropout=0.0,
    num_attention_heads=2,
    attention_norm_num_groups=4,
    has_attention_ffn=True,
    text_dim=None,
)


class Borrower(LayerBorrower):
    """A module with one layer by itself, and one in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.alone = nn.Linear(2, 2)
        self.several = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])


def test_a_borrowed_layer_runs_here_and_is_registered_there_alone():
    ours, theirs = Borrower(), Borrower()
    own = ours.layer("several", 0)
    ours.borrow(theirs.alone, "alone")
    ours.borrow(theirs.several[1], "several", 1)
    assert ours.layer("alone") is theirs.alone
    assert ours.layer("several", 1) is theirs.several[1]
    assert ours.layer("several", 0) is own
    assert set(ours.state_dict()) == {"several.0.weight", "several.0.bias"}


@torch.no_grad()
def test_a_way_down_and_up_keeps_shapes():
    down = DownBlock(SETTINGS, 4, 8, 2, BlockAttentions(1), downsample=True)
    hidden_states, skips = down(torch.randn(2, 4, 8, 8), torch.randn(2, 16))
    assert [tuple(skip.shape) for skip in skips] == [(2, 8, 8, 8), (2, 8, 8, 8), (2, 8, 4, 4)]
    assert torch.equal(skips[-1], hidden_states)
    up = UpBlock(SETTINGS, 8, [8, 8], 4, BlockAttentions(0), upsample=True)
    taken = (torch.randn(2, 8, 4, 4), torch.randn(2, 8, 4, 4))
    assert up(hidden_states, taken, torch.randn(2, 16)).shape == (2, 4, 8, 8)


@torch.no_grad()
def test_silent_branches_leave_features_as_they_are():
    block = MidBlock(SETTINGS, 8)
    states, embedding = torch.randn(2, 8, 4, 4), torch.randn(2, 16)
    assert not torch.equal(block(states, embedding), states)
    block.zero_init_()
    torch.testing.assert_close(block(states, embedding), states, rtol=0, atol=1e-6)


@pytest.mark.parametrize("attentions", [0, 1, 2])
def test_layers_have_the_same_place_in_blocks_with_more_attention(attentions):
    block = DownBlock(SETTINGS, 4, 8, 2, BlockAttentions(attentions), downsample=True)
    places = dict(block.layers_by_place())
    assert len(places) == 2 + 2 * attentions + 1
    assert places["resnets", 1, 0] == ("resnets", 1)
    assert places["downsamplers", 0, 0] == ("downsamplers", 0)
    if attentions:
        assert places["attentions", 1, 0] == ("attentions", attentions)


def test_what_holds_for_a_clip_holds_for_its_frames():
    values = torch.tensor([[1], [2]])
    assert repeat_for_frames(values, 3).flatten().tolist() == [1, 1, 1, 2, 2, 2]
    assert repeat_for_frames(values, 1) is values
    with pytest.raises(ValueError, match="for images"):
        repeat_for_frames(((values, values),), 3)
