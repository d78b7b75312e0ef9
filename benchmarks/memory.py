# SPDX-License-Identifier: Apache-2.0
"""Memory of one forward pass without gradients against the plain form: the most that its tensors take at any time.

On CPUs tensors are counted, not what the process has: what an operation makes is there from then on, until nothing
holds it. So the numbers are the same on every machine; what kernels need for the moment comes on top. On GPUs it is
the peak of torch's allocator, which includes that.
"""

from __future__ import annotations

import argparse
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
from machine import describe_machine
from measured_models import NAMES, build, inputs_of
from measuring import MODELS
from plain_unet import PlainUNet
from results_table import Results
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from variants import DTYPES, MIB, OUT_OF_MEMORY, add_machine_flags, layout_of, peak_of, release


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


@torch.no_grad()
def measure(name: str, rows: int, args: argparse.Namespace) -> dict[str, Any]:
    """The end of one row of the table."""
    dtype = DTYPES[args.dtype]
    model = build(name, args.device).eval().to(dtype)
    plain = PlainUNet(model).eval()
    model = model.to(memory_format=layout_of(args))
    inputs = inputs_of(model, rows, args.device, dtype)
    row: dict[str, Any] = {"weights, MiB": sum(value.nbytes for value in model.parameters()) / MIB}
    for form in ("plain", "ours", "ours, level slicing"):
        if "slicing" in form:
            model.enable_level_slicing()
        try:
            row[f"{form}, MiB"] = most_of(partial(plain if form == "plain" else model, **inputs), args.device)
        except torch.OutOfMemoryError:
            row[f"{form}, MiB"] = OUT_OF_MEMORY
        release(args.device)
    if isinstance(row["plain, MiB"], float) and isinstance(row["ours, MiB"], float):
        row["ours / plain"] = row["ours, MiB"] / row["plain, MiB"]
    return row


def most_of(call: Callable[[], Any], device: str) -> float:
    """MiB of a call at most: of its tensors, on a GPU of all that torch allocates for it."""
    if device != "cuda":
        return most_memory(call) / MIB
    call()  # prepares workspaces
    return cast(float, peak_of(call, device))


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command's flags."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=NAMES)
    parser.add_argument("--batch_size", type=int, nargs="+", default=[4], help="one or several")
    add_machine_flags(parser)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Measure every model."""
    args = parse_args(argv)
    machine = describe_machine(args.device, args.commit)
    machine["memory format of ours"] = str(layout_of(args)).removeprefix("torch.")
    results = Results(f"Memory of one forward pass, {args.dtype}", machine, args.output)
    for name in args.models:
        for rows in args.batch_size:
            results.add({"model": name, "rows": rows}, partial(measure, name, rows, args))
    results.finish()


if __name__ == "__main__":
    main()
