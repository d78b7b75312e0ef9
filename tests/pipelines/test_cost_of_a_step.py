# SPDX-License-Identifier: Apache-2.0
"""What one step of a guided drawing costs, in operations and memory: whatever else a machine does.

`python -m tests.pipelines.test_cost_of_a_step` prints them. What makes a step dearer has to raise a limit here.
"""

from collections import Counter
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.pipelines.tiny_pipeline import draw, make_pipeline

# Of one guided step of the tiny pipeline (levels of 8 and 16 pixels): 15 residual layers, 6 attention layers.
LIMITS = {
    "operations": 259,
    "convolutions": 47,
    "matrix products": 24,
    "attentions": 8,
    "copies": 0,
    "tensors": 312,
    "kilobytes": 904,
}
KINDS = {
    "convolutions": ("convolution",),
    "matrix products": ("addmm", "mm", "bmm", "baddbmm"),
    "attentions": ("_scaled_dot_product",),
    "copies": ("_to_copy", "clone", "copy_", "contiguous"),
}
# Views of memory that is there already.
VIEWS = (
    *("view", "_unsafe_view", "transpose", "t", "permute", "expand", "slice", "select", "unsqueeze", "squeeze"),
    *("split", "unbind", "chunk", "unflatten", "alias", "detach", "as_strided"),
)


class Costs(TorchDispatchMode):
    """Counts what runs inside the block."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = function(*args, **(kwargs or {}))
        name = function.overloadpacket.__name__
        if name in VIEWS:
            return output
        self.counts["operations"] += 1
        for kind, names in KINDS.items():
            self.counts[kind] += any(name == entry or (entry[0] == "_" and name.startswith(entry)) for entry in names)
        given = {storage(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)}
        for leaf in tree_leaves(output):
            if isinstance(leaf, torch.Tensor) and storage(leaf) not in given:
                self.counts["tensors"] += 1
                self.counts["bytes"] += leaf.untyped_storage().nbytes()
        return output


def storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def cost_of_drawing(pipe: Any, num_steps: int) -> Counter[str]:
    with Costs() as costs:
        draw(pipe, num_inference_steps=num_steps, guidance_scale=3.0)
    return costs.counts


def cost_of_a_step() -> dict[str, int]:
    """The difference that one step more makes."""
    pipe = make_pipeline()
    draw(pipe)  # what is done once for all is done now
    more, less = cost_of_drawing(pipe, 4), cost_of_drawing(pipe, 3)
    costs = {kind: more[kind] - less[kind] for kind in more}
    return {**costs, "kilobytes": costs["bytes"] // 1024}


@pytest.fixture(scope="module")
def costs() -> dict[str, int]:
    return cost_of_a_step()


@pytest.mark.parametrize("kind", LIMITS)
def test_a_step_gets_no_dearer(costs, kind):
    assert costs[kind] <= LIMITS[kind]


if __name__ == "__main__":
    for kind, number in cost_of_a_step().items():
        print(f"{kind}: {number}")
