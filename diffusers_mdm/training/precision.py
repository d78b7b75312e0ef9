# SPDX-License-Identifier: Apache-2.0
"""The names of precisions in flags and recipes, and their dtypes."""

from collections.abc import Mapping
from typing import Any

import torch

EMULATION = (
    "This machine's processor has no units for bf16 and emulates it, many times slower than float32: pass "
    "--mixed_precision no."
)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def frozen_dtype(mixed_precision: str) -> torch.dtype:
    """Return the dtype of frozen weights in a run with accelerate's `mixed_precision` ("no" is float32)."""
    return DTYPES.get(mixed_precision, torch.float32)


def emulates_bf16() -> bool:
    """Return whether this machine computes on a processor without units for bf16, where it is many times slower.

    This is detected only on x86 (AMX, AVX-512 BF16), with releases of torch that report capabilities.
    """
    if torch.cuda.is_available() or torch.backends.mps.is_available():
        return False
    capabilities: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    if capabilities.get("architecture") not in ("x86_64", "AMD64"):
        return False
    return not any(capabilities.get(unit) for unit in ("amx_bf16", "avx512_bf16"))


def check_precision(mixed_precision: str, *, is_asked_for: bool) -> None:
    """Refuse bf16 where it would only be emulated, unless it was requested.

    Args:
        mixed_precision: the precision of the run.
        is_asked_for: whether a flag requests it, and not only the recipe, which may be for another machine.

    Raises:
        ValueError: bf16 would be emulated; says what to do instead.
    """
    if mixed_precision == "bf16" and not is_asked_for and emulates_bf16():
        raise ValueError(
            f"The recipe has `mixed_precision: bf16`. {EMULATION} (Or pass --mixed_precision bf16 to use it "
            "nevertheless.)"
        )
