# SPDX-License-Identifier: Apache-2.0
"""What a machine is, and how fast it does by itself the products and convolutions that a call consists of."""

from __future__ import annotations

import os
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


def describe_machine(device: str, commit: str | None = None) -> dict[str, Any]:
    """Processor or card, its class, threads, versions and commit: what is printed above a table of results.

    Args:
        device: "cpu" or "cuda".
        commit: of this code; if not given it is read from `DIFFUSERS_MDM_COMMIT` or with git, else "unknown".
    """
    is_cuda = torch.device(device).type == "cuda"
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()
    machine = {
        "device": torch.cuda.get_device_name() if is_cuda else capabilities.get("cpu_name", platform.processor()),
        "class": "GPU" if is_cuda else class_of_processor(capabilities),
        "architecture": platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "python": platform.python_version(),
        "commit": commit or os.environ.get("DIFFUSERS_MDM_COMMIT") or commit_of_checkout(),
    }
    if is_cuda:
        machine |= {"CUDA": torch.version.cuda, "cuDNN": torch.backends.cudnn.version()}
    return machine


def commit_of_checkout() -> str:
    """The commit that is checked out, "unknown" without git or outside of a checkout."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    try:
        found = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, encoding="utf-8", check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return found.stdout.strip()


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


def matrix_rate(device: str, dtype: torch.dtype) -> float:
    """Floating-point operations per second of large matrix products on this machine.

    The fastest of many rounds counts, since nothing but other programs makes one slower.
    """
    side, repeats = (8192, 10) if torch.device(device).type == "cuda" else (512, 1)
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    clock, rounds = clock_of(device), []
    left @ right
    while len(rounds) < 3 or (sum(rounds) < 0.5 and len(rounds) < 100):
        start = clock()
        for _ in range(repeats):
            left @ right
        rounds.append(clock() - start)
    return 2 * side**3 * repeats / min(rounds)


def seconds_of_operations(
    call: Callable[[], Any], clock: Callable[[], float], rounds: int = 3, repeats: int = 1
) -> float:
    """Time that the products and convolutions of a call take when each runs alone, over and over: what the machine
    needs for its counted operations, at its own measured rates. Attention kernels and all else are left out.

    Args:
        call: is run once, to see what it consists of.
        clock: seconds.
        rounds: of which the fastest counts, since nothing but other programs makes one slower.
        repeats: how often an operation runs in a round; several hide the time that a GPU takes to launch it.
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
                for _ in range(repeats):
                    function(*args)
                fastest = min(fastest, (clock() - start) / repeats)
        total += count * fastest
    return total


def clock_of(device: str) -> Callable[[], float]:
    """Time of the processor where one thread computes, which other programs do not lengthen; else that of the wall.

    On a GPU each reading first waits until everything that was launched is done.
    """
    if torch.device(device).type == "cuda":
        return _time_after_gpu
    return time.process_time if torch.get_num_threads() == 1 else time.perf_counter


def _time_after_gpu() -> float:
    torch.cuda.synchronize()
    return time.perf_counter()


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
