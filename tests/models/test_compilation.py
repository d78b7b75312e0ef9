# SPDX-License-Identifier: Apache-2.0
"""Compiled models: few graphs, without a break, for batches, sizes and prompts that come later."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from diffusers_mdm import NestedUNetModel
from diffusers_mdm.library_internals import GRAPH_LIMIT
from diffusers_mdm.models.compilation import GRAPHS_OF_A_MODEL, with_room_for_graphs
from tests.models.tiny_models import randomize, video_config
from tests.pipelines.tiny_pipeline import TEXT_WIDTH, make_pipeline, make_unet

# torch gives up a function after so many graphs of it, unless it is told otherwise.
LIMIT_OF_TORCH = 8
# The published model of 1024 pixels, as its conversion configures it.
PUBLISHED = {
    "block_out_channels": ((256, 512, 768), (64, 128, 256), (32, 32, 64, 64, 128)),
    "layers_per_block": ((2, 2, 2), (2, 2, 1), (2, 2, 2, 1, 1)),
    "attention_layers_per_block": ((0, 1, 5), (0, 0, 0), (0, 0, 0, 0, 0)),
}
SHIPPED = sorted((Path(__file__).parents[2] / "model_cards").glob("*/unet/config.json"))
TINY = {
    "block_out_channels": ((4,), (4, 4)),
    "layers_per_block": ((1,), (1, 1)),
    "attention_layers_per_block": ((0,), (0, 0)),
    "has_mid_block": (False, False),
    "encoder_hid_dim": None,
    "cross_attention_dim": None,
}


@pytest.fixture(autouse=True)
def forget_graphs() -> Iterator[None]:
    """What other tests compiled counts towards the limits of the same functions."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def empty_model(config: dict[str, Any]) -> NestedUNetModel:
    with torch.device("meta"):
        return NestedUNetModel.from_config(config)


def shapes_of_repeated_blocks(model: NestedUNetModel) -> dict[str, tuple[int, int]]:
    """How many layers of each repeated kind a model has, and how many of them differ in their parameters."""
    found: dict[str, list[Any]] = {}
    for module in model.modules():
        if type(module).__name__ in model._repeated_blocks:
            shapes = tuple((name, tuple(value.shape)) for name, value in module.named_parameters())
            found.setdefault(type(module).__name__, []).append(shapes)
    return {name: (len(shapes), len(set(shapes))) for name, shapes in found.items()}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.parts[-3])
def test_repeated_blocks_of_the_shipped_models_have_few_shapes(path):
    for number, distinct in shapes_of_repeated_blocks(empty_model(json.loads(path.read_text()))).values():
        assert distinct <= min(number, LIMIT_OF_TORCH // 2)


def test_repeated_blocks_of_the_published_model_repeat():
    settings = {
        "has_mid_block": (True, False, False),
        "has_attention_ffn": (True, False, False),
        "norm_num_groups": (32, 32, 32),
        "normalize_input": (False, True, True),
        "dropout": (0.0,) * 3,
        "micro_conditioning_keys": (("scale",),) * 3,
        "micro_conditioning_defaults": ((64.0,), (256.0,), (1024.0,)),
        "encoder_hid_dim": 2048,
        "cross_attention_dim": 2048,
    }
    number, distinct = shapes_of_repeated_blocks(empty_model({**PUBLISHED, **settings}))["SpatialAttention"]
    assert number > 10 * distinct


def inputs_of(rows: int, outer_rows: int, side: int, length: int) -> dict[str, Any]:
    """Inputs of `make_unet`, whose rows inside and outside, sides and tokens are given."""
    generator = torch.Generator().manual_seed(rows)
    sides = ((rows, side), (outer_rows, 2 * side))
    return {
        "sample": [torch.randn(number, 3, size, size, generator=generator) for number, size in sides],
        "timestep": torch.randint(0, 1000, (rows,), generator=generator),
        "encoder_hidden_states": torch.randn(rows, length, TEXT_WIDTH, generator=generator),
        "added_cond_kwargs": {"scale": torch.randint(4, 20, (rows,), generator=generator).float()},
    }


@torch.no_grad()
def test_repeated_blocks_compile_once_for_every_size():
    """One graph for each shape of layers where there are several rows, one more for a single row."""
    model, plain = make_unet(), make_unet()
    counter = CompileCounter()
    model.compile_repeated_blocks(fullgraph=True, backend=counter)
    shapes = sum(distinct for _, distinct in shapes_of_repeated_blocks(model).values())
    for shape in ((3, 2, 8, 5), (5, 3, 16, 7), (4, 4, 24, 6)):
        given = inputs_of(*shape)
        for prediction, expected in zip(model(**given).sample, plain(**given).sample, strict=True):
            torch.testing.assert_close(prediction, expected, atol=2e-5, rtol=0)
    if GRAPH_LIMIT.name_here() == GRAPH_LIMIT.older_name:
        return  # torch 2.6 makes a graph for some sizes that newer ones do not need
    assert counter.frame_count == shapes
    model(**inputs_of(1, 1, 8, 5))
    assert counter.frame_count == 2 * shapes


@pytest.mark.slow
@torch.no_grad()
def test_repeated_blocks_of_clips_compile(video_inputs):
    model = randomize(NestedUNetModel(**video_config())).eval()
    expected = model(**video_inputs).sample
    model.compile_repeated_blocks(fullgraph=True, backend="eager")
    torch.testing.assert_close(model(**video_inputs).sample, expected, atol=2e-5, rtol=0)


@pytest.mark.slow
@torch.no_grad()
def test_a_compiled_model_outlives_the_limit_of_torch():
    """Batches of one, levels left out and rows left out make graphs of their own, more than torch allows by itself."""
    model = make_unet(**TINY)
    counter = CompileCounter()
    model.compile(fullgraph=True, backend=counter)
    for rows, outer_rows, side, levels in (
        (1, 1, 8, 2),
        (3, 3, 8, 2),
        (3, 2, 12, 2),
        (3, 1, 16, 2),
        (1, 1, 8, 1),
        (4, 4, 16, 1),
    ):
        for steps in (torch.arange(rows), 7):
            sample = [torch.randn(rows, 3, side, side), torch.randn(outer_rows, 3, 2 * side, 2 * side)][:levels]
            model(sample, steps)
    assert LIMIT_OF_TORCH < counter.frame_count < 16


def test_a_limit_that_is_given_counts():
    assert with_room_for_graphs({"recompile_limit": 3})["recompile_limit"] == 3
    assert with_room_for_graphs({}).get("recompile_limit", GRAPHS_OF_A_MODEL) == GRAPHS_OF_A_MODEL


@pytest.mark.slow
@torch.no_grad()
def test_a_compiled_model_takes_other_batches_and_sizes():
    """The first other shape makes a graph for any shape; the next one finds it."""
    counter = CompileCounter()
    model = make_unet()
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    for shape in ((3, 2, 8, 5), (5, 3, 16, 7), (4, 2, 24, 6)):
        given = inputs_of(*shape)
        for prediction, expected in zip(compiled(**given).sample, model(**given).sample, strict=True):
            torch.testing.assert_close(prediction, expected, atol=2e-5, rtol=0)
    assert counter.frame_count == 2


@pytest.mark.slow
def test_nothing_is_compiled_after_the_first_step():
    """Whatever the number of steps, images, levels and tokens; what was seen before compiles nothing at all."""
    pipeline, counter = make_pipeline(), CompileCounter()
    pipeline.unet.compile(fullgraph=True, backend=counter)
    graphs: list[int] = []

    def draw(num_steps: int, **arguments: Any) -> list[int]:
        graphs.clear()
        pipeline(
            num_inference_steps=num_steps,
            output_type="latent",
            callback_on_step_end=lambda *_: graphs.append(counter.frame_count) or {},
            **arguments,
        )
        return graphs

    drawings = [
        {"prompt": "a red apple"},
        {"prompt": ["a red apple", "a small green pear on a table"]},
        {"prompt": ["a red apple"] * 3, "guidance_scale": 1.0},
        {"prompt": ["a red apple"] * 4, "height": 8},
    ]
    for number, arguments in enumerate(drawings):
        assert len(set(draw(3 + number, **arguments))) == 1
    compiled = counter.frame_count
    for number, arguments in enumerate(drawings):
        draw(9 - number, **arguments)
    draw(2, prompt=["a red apple"] * 5)
    assert counter.frame_count == compiled
