# SPDX-License-Identifier: Apache-2.0
"""The estimate counts what is alive at once, and agrees with a real step."""

import torch

from diffusers_mdm.cli.generating.drawing_memory import LiveMemory, step_bytes
from tests.pipelines.tiny_pipeline import TEXT_WIDTH, make_unet

MIB = 2**20


def test_freed_memory_does_not_count():
    with LiveMemory() as memory:
        first = torch.zeros(MIB // 4)
        second = first + 1
        view = second[:10]
        assert memory.current == 2 * MIB
        del first
        third = second * 2
        assert memory.current == memory.peak == 2 * MIB
        del second, third
        assert memory.current == MIB  # the view keeps it
        del view
    assert (memory.current, memory.peak) == (0, 2 * MIB)


def test_the_estimate_is_what_a_real_step_keeps():
    """Kernels of fake and of real tensors may differ in temporary tensors, by far less than half."""
    unet = make_unet()
    batch = 3
    inputs = {
        "timestep": torch.zeros(2 * batch, dtype=torch.int64),
        "encoder_hidden_states": torch.zeros(2 * batch, 128, TEXT_WIDTH),
        "encoder_attention_mask": torch.ones(2 * batch, 128, dtype=torch.bool),
    }
    with torch.no_grad(), LiveMemory() as memory:
        unet([torch.randn(2 * batch, 3, side, side) for side in (8, 16)], **inputs)
    estimate = step_bytes(unet, 2, batch, torch.float32)
    assert 0.5 < estimate / memory.peak < 2
    assert step_bytes(unet, 1, batch, torch.float32) < estimate
    assert step_bytes(unet, 2, batch, torch.bfloat16) < 0.75 * estimate
