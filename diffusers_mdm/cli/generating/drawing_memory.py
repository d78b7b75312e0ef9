# SPDX-License-Identifier: Apache-2.0
"""Estimate of the memory that one step of generating takes, without allocating it.

The model runs on fake tensors (shapes without contents), and the storages that are alive at once are added up.
Temporary buffers of kernels and memory that the allocator leaves unused are not included.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ...library_internals import FAKE_TENSORS, storage_address

# Tokens of a prompt: the default maximum of the pipelines.
NUM_TOKENS = 128
# A guided step predicts every sample with and without the condition.
GUIDED = 2


class LiveMemory(TorchDispatchMode):
    """Counts the bytes of storages that are made inside the block and still alive.

    Attributes:
        current: bytes that are alive now.
        peak: the most that were alive at once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.current = self.peak = 0
        self._alive: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, torch.Tensor):
                self._count(value)
        return result

    def _count(self, tensor: torch.Tensor) -> None:
        storage, address = tensor.untyped_storage(), storage_address(tensor)
        if address in self._alive:
            return
        self._alive.add(address)
        self.current += storage.nbytes()
        self.peak = max(self.peak, self.current)
        weakref.finalize(storage, self._forget, address, storage.nbytes())

    def _forget(self, address: int, size: int) -> None:
        self._alive.discard(address)
        self.current -= size


def step_bytes(unet: Any, num_levels: int, batch_size: int, dtype: torch.dtype) -> int:
    """Return the most bytes, besides the weights, that a guided prediction of the inner levels has in memory at once.

    Args:
        unet: a `NestedUNetModel` on the meta device.
        num_levels: number of inner levels that run.
        batch_size: images or clips that are generated together.
        dtype: of the model and its inputs.
    """
    batch = batch_size * GUIDED
    config = unet.config
    with torch.device("meta"):
        model = type(unet).from_config(config).inner_model(num_levels).eval()
        torch.nn.Module.to(model, dtype)  # diffusers' own `to` warns, although nothing is to stay in float32
    with FAKE_TENSORS.get()(allow_non_fake_inputs=True), torch.no_grad():
        model = model.to_empty(device="cpu")
        with LiveMemory() as memory:
            sizes = zip(unet.level_frames[:num_levels], unet.sample_sizes[:num_levels], strict=True)
            is_clip = max(unet.level_frames) > 1
            sample = [
                torch.empty(batch, config["in_channels"], *((frames,) if is_clip else ()), side, side, dtype=dtype)
                for frames, side in sizes
            ]
            inputs: dict[str, Any] = {"timestep": torch.zeros(batch, dtype=torch.int64)}
            width = config["encoder_hid_dim"] or config["cross_attention_dim"]
            if width is not None:
                inputs["encoder_hidden_states"] = torch.empty(batch, NUM_TOKENS, width, dtype=dtype)
                inputs["encoder_attention_mask"] = torch.ones(batch, NUM_TOKENS, dtype=torch.bool)
            if config["num_class_embeds"] is not None:
                inputs["class_labels"] = torch.zeros(batch, dtype=torch.int64)
            model(sample, **inputs)
        return memory.peak
