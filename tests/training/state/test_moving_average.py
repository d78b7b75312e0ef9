# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from diffusers.training_utils import EMAModel

from diffusers_mdm.training.state.moving_average import Average


def new_module() -> torch.nn.Module:
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Linear(5, 2))
    module[0].bias.requires_grad_(False)
    return module


@pytest.mark.parametrize("foreach", [True, False])
@pytest.mark.parametrize("decay", [0.0, 0.6, 0.9999])
def test_it_computes_as_that_of_diffusers_does(decay, foreach):
    module = new_module()
    expected = EMAModel(module.parameters(), decay=decay, use_ema_warmup=True, power=0.75, foreach=foreach)
    average = Average({name: value.detach().clone() for name, value in module.named_parameters()}, 0, decay, foreach)
    for _ in range(6):
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(torch.randn_like(parameter))
        expected.step(module.parameters())
        average.update(dict(module.named_parameters()))
        assert average.decay_now == expected.cur_decay_value
        for shadow, wanted in zip(average.shadows.values(), expected.shadow_params, strict=True):
            torch.testing.assert_close(shadow, wanted, rtol=0, atol=1e-6)
    assert average.steps == expected.optimization_step


def test_weights_that_do_not_learn_are_taken_over():
    module = new_module()
    average = Average({name: torch.zeros_like(value) for name, value in module.named_parameters()}, steps=100)
    average.update(dict(module.named_parameters()))
    assert torch.equal(average.shadows["0.bias"], module[0].bias)
    assert not torch.equal(average.shadows["1.bias"], module[1].bias)


def test_shadows_are_found_by_name_whatever_the_order():
    module = new_module()
    parameters = dict(module.named_parameters())
    ahead = Average({name: value.detach().clone() for name, value in parameters.items()}, steps=10)
    behind = Average({name: parameters[name].detach().clone() for name in reversed(parameters)}, steps=10)
    with torch.no_grad():
        module[1].weight.add_(1.0)
    for average in (ahead, behind):
        average.update(parameters)
    assert all(torch.equal(value, behind.shadows[name]) for name, value in ahead.shadows.items())
