# SPDX-License-Identifier: Apache-2.0
"""What a machine is, and how fast it does by itself the products and convolutions that a call consists of."""

from __future__ import annotations

import platform
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch.utils._python_dispatch import TorchDispatchMode

UNITS = ("amx_bf16", "avx512_bf16", "avx512_f", "avx2")
_LARGE = {  # operations that multiply matrices
    torch.ops.aten.convolution.default,
    torch.ops.aten.addmm.default,
    torch.ops.aten.mm.default,
    torch.ops.aten.bmm.default,
    torch.ops.aten.baddbmm.default,
}


def describe_machine(device: str) -> dict[str, Any]:
    """Processor or card, its class, threads, versions and commit: what stands above a table of results."""
    asked = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(
        asked, cwd=Path(__file__).parent, capture_output=True, encoding="utf-8", check=False
    ).stdout.strip()
    is_cuda = torch.device(device).type == "cuda"
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()
    return {
        "device": torch.cuda.get_device_name() if is_cuda else capabilities.get("cpu_name", platform.processor()),
        "class": "GPU" if is_cuda else class_of_processor(capabilities),
        "architecture": platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "python": platform.python_version(),
        "commit": commit,
    }


def class_of_processor(capabilities: Mapping[str, Any]) -> str:
    """The class of a processor by its best units for matrices: on it depends which goals apply."""
    best = next((unit for unit in UNITS if capabilities.get(unit)), None)
    if best in ("amx_bf16", "avx512_bf16"):
        return f"matrix units ({best})"
    return f"no matrix units ({best or 'unknown'}): bf16 is emulated" if capabilities else "unknown"


class LargeOperations(TorchDispatchMode):
    """Notes every product of matrices and every convolution that runs inside the block.

    Attributes:
        found: how often each operation ran with inputs of these shapes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[Any] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in _LARGE:
            self.found[(function, tuple(_described(value) for value in args))] += 1
        return function(*args, **(kwargs or {}))


def seconds_of_operations(call: Callable[[], Any], clock: Callable[[], float], rounds: int = 3) -> float:
    """Time that the products and convolutions of a call take when each runs alone, over and over: what the machine
    needs for its counted operations, at its own measured rates. Attention kernels and all else are left out.

    Args:
        call: is run once, to see what it consists of.
        clock: seconds.
        rounds: of which the fastest counts, since nothing but other programs makes one slower.
    """
    with torch.no_grad(), LargeOperations() as operations:
        call()
    total = 0.0
    for (function, described), count in operations.found.items():
        args = [_made(value) for value in described]
        fastest = float("inf")
        with torch.no_grad():
            function(*args)
            for _ in range(rounds):
                start = clock()
                function(*args)
                fastest = min(fastest, clock() - start)
        total += count * fastest
    return total


def clock_of(device: str) -> Callable[[], float]:
    """Time of the processor where one thread computes, which other programs do not lengthen; else that of the wall."""
    if torch.device(device).type == "cpu" and torch.get_num_threads() == 1:
        return time.process_time
    return time.perf_counter


def _described(value: Any) -> Any:
    """Shape, strides and kind of a tensor; another value as something that can be a key."""
    if isinstance(value, torch.Tensor):
        return ("tensor", tuple(value.shape), value.stride(), value.dtype, str(value.device))
    return tuple(value) if isinstance(value, list) else value


def _made(value: Any) -> Any:
    if isinstance(value, tuple) and value[:1] == ("tensor",):
        _, shape, strides, dtype, device = value
        # Entries may share memory (an expanded bias): it is filled as it lies.
        length = 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
        memory = torch.randn(length, device=device) if dtype.is_floating_point else torch.zeros(length, device=device)
        return memory.to(dtype).as_strided(shape, strides)
    return list(value) if isinstance(value, tuple) else value
