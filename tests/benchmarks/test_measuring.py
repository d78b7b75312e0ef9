# SPDX-License-Identifier: Apache-2.0
import json
import math
import time

import pytest
import torch
from measuring import (
    build_model,
    count_flops,
    open_training_split,
    random_inputs,
    ratio_of_medians,
    time_by_turns,
    write_numbers,
)

from tests.training.tiny_run import write_images


def test_calls_take_turns_after_one_round_of_warming_up():
    order = []
    calls = {"a": lambda: order.append("a"), "b": lambda: (order.append("b"), time.sleep(0.01))}
    seconds = time_by_turns(calls, rounds=3)
    assert order == ["a", "b"] * 4
    assert [len(values) for values in seconds.values()] == [3, 3]
    assert min(seconds["b"]) > 0.009
    assert ratio_of_medians([0.3, 0.6, 9.0], [0.1, 0.3, 0.2]) == pytest.approx(3)


def test_operations_of_matrix_product_convolution_and_attention():
    left, right = torch.randn(3, 4), torch.randn(4, 5)
    assert count_flops(lambda: left @ right) == 2 * 3 * 4 * 5
    image, conv = torch.randn(2, 3, 8, 8), torch.nn.Conv2d(3, 6, 3, padding=1)
    assert count_flops(lambda: conv(image)) == 2 * (2 * 8 * 8) * 6 * (3 * 9)
    query = torch.randn(1, 2, 5, 8)
    assert count_flops(lambda: torch.nn.functional.scaled_dot_product_attention(query, query, query)) == (
        2 * 2 * (2 * 5 * 5 * 8)
    )


def test_operations_grow_with_the_rows(tiny_model):
    def cost(rows):
        inputs = random_inputs(tiny_model, rows)
        return count_flops(lambda: tiny_model(**inputs))

    full, mixed, inner = cost([4, 4]), cost([4, 2]), cost([4])
    # The kernels with which pixels are doubled are made once, whatever the rows.
    assert mixed - inner == pytest.approx((full - inner) / 2, rel=0.01)
    assert full > mixed > inner > 0


@pytest.mark.parametrize(("name", "sides"), [("emoji", (16, 64)), ("middle", (32, 128))])
def test_models_take_the_inputs_made_for_them(name, sides):
    model = build_model(name)
    assert model.sample_sizes == sides
    with torch.no_grad():
        predictions = model(**random_inputs(model, [2, 1])).sample
    assert [tuple(level.shape) for level in predictions] == [(2, 3, sides[0], sides[0]), (1, 3, sides[1], sides[1])]


def test_numbers_that_are_unknown_are_written_as_null(tmp_path):
    write_numbers(tmp_path / "numbers.json", {"mean": [1.5, math.nan]})
    assert json.loads((tmp_path / "numbers.json").read_text(encoding="utf-8")) == {"mean": [1.5, None]}


def test_the_training_split_is_read_by_number(tmp_path):
    images, captions = open_training_split(write_images(tmp_path / "data"), 8)
    assert captions[:2] == ["red rectangle", "red ellipse"]
    assert images.load([3, 0]).pixels.shape == (2, 3, 8, 8)
