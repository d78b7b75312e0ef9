# SPDX-License-Identifier: Apache-2.0
import dataclasses

import pytest
import torch

from diffusers_mdm import pyramid_noise
from diffusers_mdm.training.loss.draws import offset_noise, sample_timesteps, timestep_at
from diffusers_mdm.training.recipe.stage import StageRecipe

STAGE = StageRecipe(name="inner", levels=1, batch_size=1, learning_rate=1.0, steps=1)
SHAPES = [(4, 3, 8, 8), (2, 3, 16, 16)]


def biased(strategy: str, portion: float = 0.25, multiplier: float = 3.0) -> StageRecipe:
    return dataclasses.replace(
        STAGE,
        timestep_bias_strategy=strategy,
        timestep_bias_portion=portion,
        timestep_bias_multiplier=multiplier,
    )


def generators(number: int, first: int = 0) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(first + row) for row in range(number)]


def histogram(stage: StageRecipe, num_train_timesteps: int, draws: int = 60_000) -> torch.Tensor:
    """How often each t comes when the chances are evenly spread."""
    timesteps = [timestep_at(stage, num_train_timesteps, (draw + 0.5) / draws) for draw in range(draws)]
    return torch.bincount(torch.tensor(timesteps), minlength=num_train_timesteps) / draws


@pytest.mark.parametrize(
    ("strategy", "favoured"), [("none", slice(0)), ("earlier", slice(0, 3)), ("later", slice(9, 12))]
)
@pytest.mark.parametrize("multiplier", [3.0, 0.5])
def test_favoured_timesteps_come_so_many_times_as_often(strategy, favoured, multiplier):
    shares = torch.ones(12)
    shares[favoured] *= multiplier
    measured = histogram(biased(strategy, multiplier=multiplier), 12)
    torch.testing.assert_close(measured, shares / shares.sum(), rtol=0, atol=1e-4)


def test_the_whole_range_is_reached_and_not_left():
    for strategy in ("none", "earlier", "later"):
        for multiplier in (0.1, 1.0, 7.0):
            stage = biased(strategy, 0.3, multiplier)
            assert timestep_at(stage, 1000, 0.0) == 0
            assert timestep_at(stage, 1000, 1.0 - 2**-53) == 999


def test_a_portion_of_all_is_no_bias():
    for strategy in ("earlier", "later"):
        torch.testing.assert_close(histogram(biased(strategy, 1.0, 5.0), 10), torch.full((10,), 0.1))


def test_random_draws_follow_the_bias():
    chances = torch.rand(4000, generator=torch.Generator().manual_seed(0), dtype=torch.float64).tolist()
    timesteps = sample_timesteps(biased("later", 0.25, 9.0), 1000, chances, "cpu")
    assert timesteps.dtype == torch.int64
    # 9/4 of 9/4 + 3/4 lie in the last quarter; the standard error of 4000 draws is 0.7 %.
    assert (timesteps >= 750).float().mean().item() == pytest.approx(0.75, abs=0.03)


def test_a_timestep_depends_on_its_own_chance_alone():
    chances = torch.rand(8, generator=torch.Generator().manual_seed(1), dtype=torch.float64).tolist()
    together = sample_timesteps(STAGE, 1000, chances, "cpu")
    assert together.tolist() == [int(chance * 1000) for chance in chances]


def test_offsets_shift_whole_channels():
    noise = pyramid_noise(SHAPES)
    for level, shifted in zip(noise, offset_noise(noise, 0.3, generators(4)), strict=True):
        shift = shifted - level
        torch.testing.assert_close(shift, shift.mean((2, 3), keepdim=True).expand_as(shift), rtol=0, atol=1e-5)
        assert len(shift[:, :, 0, 0].flatten().unique()) == shift[:, :, 0, 0].numel()


def test_offsets_have_the_asked_size_and_are_independent_between_levels():
    zeros = [torch.zeros(20_000, 1, 1, 1), torch.zeros(20_000, 1, 2, 2)]
    torch.manual_seed(0)
    inner, outer = (level[:, 0, 0, 0] for level in offset_noise(zeros, 0.1))
    assert inner.std().item() == pytest.approx(0.1, rel=0.03)
    assert outer.std().item() == pytest.approx(0.1, rel=0.03)
    correlation = torch.corrcoef(torch.stack([inner, outer]))[0, 1].item()
    assert correlation == pytest.approx(0, abs=0.03)


def test_offsets_of_a_row_depend_on_its_own_generator_alone():
    noise = pyramid_noise(SHAPES)
    whole = offset_noise(noise, 0.3, generators(4))
    second = offset_noise([level[1:2] for level in noise], 0.3, generators(1, first=1))
    for level, row in zip(whole, second, strict=True):
        assert torch.equal(level[1:2], row)
    # A level drawn without those around it has the same offset.
    inner = offset_noise(noise[:1], 0.3, generators(4))
    assert torch.equal(inner[0], whole[0])


def test_no_offset_draws_nothing():
    noise, rows = pyramid_noise(SHAPES), generators(4)
    before = rows[0].get_state()
    assert offset_noise(noise, 0.0, rows) is noise
    assert torch.equal(rows[0].get_state(), before)


def test_offsets_need_a_generator_a_row():
    with pytest.raises(ValueError, match="3 generators for 4 samples"):
        offset_noise(pyramid_noise(SHAPES), 0.1, generators(3))
