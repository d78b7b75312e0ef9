# SPDX-License-Identifier: Apache-2.0
"""The names of precisions in flags and recipes, and their dtypes."""

import torch

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def frozen_dtype(mixed_precision: str) -> torch.dtype:
    """Return the dtype of frozen weights in a run with accelerate's `mixed_precision` ("no" is float32)."""
    return DTYPES.get(mixed_precision, torch.float32)
