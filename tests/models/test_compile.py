# SPDX-License-Identifier: Apache-2.0
"""One compiled model, without a break in its graph, for batches and sizes that come later."""

from typing import Any

import pytest
import torch

from tests.pipelines.tiny_pipeline import TEXT_WIDTH, make_unet

# Rows inside and outside, side of level 0, tokens; all of them change each time.
SHAPES = ((3, 2, 8, 5), (5, 3, 16, 7), (4, 2, 24, 6))


def inputs_of(rows: int, outer_rows: int, side: int, length: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(rows)
    sides = ((rows, side), (outer_rows, 2 * side))
    return {
        "sample": [torch.randn(number, 3, size, size, generator=generator) for number, size in sides],
        "timestep": torch.randint(0, 1000, (rows,), generator=generator),
        "encoder_hidden_states": torch.randn(rows, length, TEXT_WIDTH, generator=generator),
        "added_cond_kwargs": {"scale": torch.randint(4, 20, (rows,), generator=generator).float()},
    }


@pytest.mark.slow
@torch.no_grad()
def test_a_compiled_model_takes_other_batches_and_sizes():
    """The first other shape makes a graph for any shape; the next one finds it."""
    graphs = []

    def count(graph: torch.fx.GraphModule, examples: list[torch.Tensor]) -> Any:
        graphs.append(graph)
        return graph.forward

    model = make_unet()
    compiled = torch.compile(model, fullgraph=True, backend=count)
    for shape in SHAPES:
        given = inputs_of(*shape)
        for prediction, expected in zip(compiled(**given).sample, model(**given).sample, strict=True):
            torch.testing.assert_close(prediction, expected, atol=2e-5, rtol=0)
    assert len(graphs) == 2
