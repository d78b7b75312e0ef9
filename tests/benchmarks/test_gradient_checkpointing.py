# SPDX-License-Identifier: Apache-2.0
import gradient_checkpointing as benchmark
import pytest
import torch
from measuring import random_inputs


def test_each_level_saves_its_own_memory(tiny_model):
    costs = {cost.levels: cost for cost in benchmark.measure_costs(tiny_model, batch_size=2, rounds=1)}
    assert list(costs) == [(), (0,), (1,), (0, 1)]
    assert costs[()].memory_factor == costs[()].time_factor == 1
    saved = {levels: costs[()].memory - cost.memory for levels, cost in costs.items()}
    assert saved[(0,)] > 0
    assert saved[(1,)] > 0
    # What a level keeps does not depend on the others, up to tensors that stand between two levels.
    assert saved[(0, 1)] == pytest.approx(saved[(0,)] + saved[(1,)], rel=0.05)


def test_saved_bytes_are_counted_once_and_without_parameters():
    class Squares(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(10))

        def forward(self, x):
            twice = (x * self.weight).square() + x * self.weight  # saves x (twice), the weight (twice), one product
            return type("Output", (), {"sample": twice})

    assert benchmark.saved_bytes(Squares(), {"x": torch.ones(10)}) == 2 * 10 * 4


def test_gradients_do_not_depend_on_what_is_checkpointed(tiny_model):
    inputs = random_inputs(tiny_model, [2, 2])
    gradients = []
    for levels in ((), (1,), (0, 1)):
        benchmark.checkpoint_levels(tiny_model, levels)
        sum(level.square().mean() for level in tiny_model(**inputs).sample).backward()
        gradients.append([parameter.grad.clone() for parameter in tiny_model.parameters()])
        tiny_model.zero_grad()
    for other in gradients[1:]:
        assert all(torch.equal(one, two) for one, two in zip(gradients[0], other, strict=True))


def test_command(tiny_model, monkeypatch, capsys):
    monkeypatch.setattr(benchmark, "build_model", lambda name: tiny_model)
    benchmark.main(["--models", "emoji", "--batch_size", "1", "--rounds", "1"])
    lines = capsys.readouterr().out.splitlines()
    assert "| none |" in lines[-4]
    assert "| 0, 1 |" in lines[-1]
