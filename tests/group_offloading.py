# SPDX-License-Identifier: Apache-2.0
"""Whether the installed diffusers can move weights in groups on this machine."""

import pytest
import torch
from diffusers.hooks import apply_group_offloading


def _is_possible() -> bool:
    try:
        apply_group_offloading(
            torch.nn.Sequential(torch.nn.Linear(1, 1)), onload_device=torch.device("cpu"), offload_type="leaf_level"
        )
    except (AttributeError, RuntimeError):  # it asks for the accelerator, and there is none
        return False
    return True


needs_group_offloading = pytest.mark.skipif(
    not _is_possible(), reason="this release of diffusers moves weights in groups only where there is an accelerator"
)
