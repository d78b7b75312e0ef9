# SPDX-License-Identifier: Apache-2.0
"""Memory of one forward pass without gradients against the plain form: the most that its tensors take at any time.

Tensors are counted, not what the process has: what an operation makes is there from then on, until nothing holds it.
So the numbers are the same on every machine; what kernels need for the moment comes on top.
"""

from __future__ import annotations

import argparse
import weakref
from collections.abc import Callable
from typing import Any

import torch
from forward import TEXT_LENGTH, build
from machine import describe_machine
from measuring import MODELS
from plain_unet import PlainUNet
from results_table import report
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

MIB = 2**20


class LivingTensors(TorchDispatchMode):
    """Counts the memory of the tensors that are made inside the block.

    Attributes:
        most: bytes that were there at one time.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {_address(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)}
        output = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(output):
            if isinstance(leaf, torch.Tensor) and _address(leaf) not in given | self._seen:
                self._note(leaf.untyped_storage())
        return output

    def _note(self, storage: torch.UntypedStorage) -> None:
        address, size = storage._cdata, storage.nbytes()
        self._seen.add(address)
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._forget, address, size)

    def _forget(self, address: int, size: int) -> None:
        self._seen.discard(address)
        self.now -= size


def _address(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata


def most_memory(call: Callable[[], Any]) -> int:
    """Bytes of the tensors that a call makes and holds, at most at one time."""
    with torch.no_grad(), LivingTensors() as living:
        call()
    return living.most


def measure(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """One row of the table."""
    model = build(name)
    plain = PlainUNet(model).eval()
    model = model.to(memory_format=torch.channels_last)
    rows, width = args.batch_size, model.config.encoder_hid_dim or model.config.cross_attention_dim
    sample = [torch.zeros(rows, 3, side, side) for side in model.sample_sizes]
    timestep, text = torch.full((rows,), 500), torch.zeros(rows, TEXT_LENGTH, width)
    taken = {
        "plain": most_memory(lambda: plain(sample, timestep, text)),
        "ours": most_memory(lambda: model(sample, timestep, text)),
    }
    model.enable_level_slicing()
    taken["ours, level slicing"] = most_memory(lambda: model(sample, timestep, text))
    shares = {f"{variant}, MiB": f"{size / MIB:.1f}" for variant, size in taken.items()}
    return {"model": name, "rows": rows, **shares, "ours / plain": f"{taken['ours'] / taken['plain']:.2f}"}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command's flags."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=[*MODELS, "64", "256"])
    parser.add_argument("--batch_size", type=int, default=4)
    parser.add_argument("--output", help="write the results as JSON")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Measure every model."""
    args = parse_args(argv)
    rows = [measure(name, args) for name in args.models]
    report("Memory of one forward pass, float32", describe_machine("cpu"), rows, args.output)


if __name__ == "__main__":
    main()
