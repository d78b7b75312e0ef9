# SPDX-License-Identifier: Apache-2.0
import math
from dataclasses import dataclass

import pytest
import torch

from diffusers_mdm import MatryoshkaScheduler, NestedUNetModel, build_pyramid
from diffusers_mdm.models.level_config import LevelConfig
from diffusers_mdm.training.loss.held_out import HeldOutSamples, process_shares, validation_loss_table
from diffusers_mdm.training.loss.pyramid_loss import level_means, table_values

SIDES = (4, 8)
PIXELS = torch.randint(0, 256, (12, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@dataclass
class Rows:
    """A batch that also has the numbers of its images."""

    pixels: torch.Tensor
    rows: list[int]


def load(rows: list[int]) -> Rows:
    return Rows(PIXELS[rows], rows)


def held_out(number: int = len(PIXELS), **options) -> HeldOutSamples[Rows]:
    return HeldOutSamples(load, number, **options)


def zeros(noisy, timesteps, batch):
    return [torch.zeros_like(level) for level in noisy]


def halves(noisy, timesteps, batch):
    return [0.5 * level for level in noisy]


def clean_levels(pixels: torch.Tensor) -> list[torch.Tensor]:
    return build_pyramid(pixels.float() / 127.5 - 1, SIDES)


def measure(predict=halves, samples=None, num_levels=2, **options) -> torch.Tensor:
    chosen = samples or held_out()
    return validation_loss_table(predict, MatryoshkaScheduler(), chosen, clean_levels, num_levels, **options)


def test_the_validation_loss_is_the_plain_error_of_v():
    seen = []

    def remember(noisy, timesteps, batch):
        seen.append((noisy, timesteps, batch))
        return zeros(noisy, timesteps, batch)

    means = level_means(measure(remember, batch_size=12))
    [(noisy, timesteps, batch)] = seen
    assert batch.rows == list(range(12))
    scheduler = MatryoshkaScheduler()
    clean = clean_levels(PIXELS)
    for level, mean in enumerate(means):
        alpha = scheduler.level_alphas_cumprod(clean, timesteps)[level][:, None, None, None]
        noise = (noisy[level] - alpha.sqrt() * clean[level]) / (1 - alpha).sqrt()
        velocity = alpha.sqrt() * noise - (1 - alpha).sqrt() * clean[level]
        assert mean == pytest.approx(velocity.square().mean().item(), rel=1e-4)


def test_two_calls_give_equal_results_and_do_not_change_the_random_state():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    assert torch.equal(measure(), measure())
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("world", [2, 3, 5, 16])
@pytest.mark.parametrize("number", [12, 7, 1])
def test_processes_add_up_to_one(world, number):
    whole = measure(samples=held_out(number), batch_size=4)
    parts = [measure(samples=held_out(number), batch_size=2, rank=rank, world=world) for rank in range(world)]
    torch.testing.assert_close(sum(parts), whole, rtol=1e-6, atol=1e-6)
    assert whole[1].sum(-1).tolist() == [number, number]


@pytest.mark.parametrize(("number", "batch_size", "world"), [(12, 5, 1), (7, 2, 3), (2, 4, 3), (9, 4, 2)])
def test_processes_do_equal_work_and_every_image_counts_once(number, batch_size, world):
    shares = [list(process_shares(number, batch_size, rank, world)) for rank in range(world)]
    sizes = [[len(indices) for indices, _ in share] for share in shares]
    assert all(size == sizes[0] for size in sizes)
    counted = [index for share in shares for indices, count in share for index in indices[:count]]
    assert sorted(counted) == list(range(number))


def test_inner_levels_do_not_depend_on_outer_ones():
    both, inner = measure(), measure(num_levels=1)
    assert torch.equal(inner[:, 0], both[:, 0])
    assert inner.shape[1] == 1
    assert not torch.equal(both[0, 0], both[0, 1])


def test_timesteps_cover_the_range_evenly():
    for number, num_train_timesteps in [(12, 1000), (7, 1000), (64, 100)]:
        timesteps = held_out(100, num_images=number).timesteps(num_train_timesteps)
        expected = [math.floor((stratum + 0.5) * num_train_timesteps / number) for stratum in range(number)]
        assert sorted(timesteps.tolist()) == expected
    assert held_out().timesteps(1000).tolist() != sorted(held_out().timesteps(1000).tolist())


def test_every_quartile_is_measured():
    assert set(table_values(measure(), "validation_loss")) == {
        name
        for level in ("validation_loss/level_0", "validation_loss/level_1")
        for name in (level, *(f"{level}/quartile_{quartile}" for quartile in (1, 2, 3, 4)))
    }


def test_images_are_spread_over_the_set():
    samples = held_out(num_images=4)
    assert [samples.record(index) for index in range(len(samples))] == [0, 3, 6, 9]
    assert len(held_out(num_images=100)) == 12


def test_each_image_has_its_own_noise():
    device = torch.device("cpu")
    shapes = [(1, 3, 4, 4), (1, 3, 8, 8)]
    together = held_out(num_images=3).noise([5, 7], [(2, *shape[1:]) for shape in shapes], device)
    alone = held_out(num_images=9).noise([7], shapes, device)
    for level, row in zip(together, alone, strict=True):
        assert torch.equal(level[1:], row)
        assert not torch.equal(level[:1], row)
    other_seed = held_out(seed=1).noise([7], shapes, device)
    assert not torch.equal(other_seed[0], alone[0])


class Recorder(torch.nn.Module):
    """A module with a part whose mode differs from its own."""

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))
        self.frozen = torch.nn.Dropout(0.5).eval()
        self.modes: list[tuple[bool, bool]] = []

    def forward(self, noisy, timesteps, batch):
        self.modes.append((self.training, torch.is_grad_enabled()))
        return [self.scale * level for level in noisy]


def test_it_runs_in_evaluation_mode_without_gradients():
    module = Recorder().train()
    module.frozen.eval()
    table = measure(module, modules=[module])
    assert not table.requires_grad
    assert set(module.modes) == {(False, False)}
    assert module.training
    assert not module.frozen.training


def test_the_mode_is_restored_after_an_error():
    module = Recorder().train()

    def fail(noisy, timesteps, batch):
        raise RuntimeError("no prediction")

    with pytest.raises(RuntimeError, match="no prediction"):
        measure(fail, modules=[module])
    assert module.training


def test_predictions_that_are_not_finite_make_the_loss_nan():
    def bad_outside(noisy, timesteps, batch):
        return [noisy[0], torch.full_like(noisy[1], torch.nan)]

    inner, outer = level_means(measure(bad_outside))
    assert math.isfinite(inner)
    assert math.isnan(outer)


def test_the_loss_of_the_inner_level_is_continuous_when_the_model_grows():
    torch.manual_seed(0)
    level = {"norm_num_groups": 4, "micro_conditioning_keys": (), "micro_conditioning_defaults": ()}
    rows = [
        LevelConfig(
            block_out_channels=(8,) * blocks,
            layers_per_block=(1,) * blocks,
            attention_layers_per_block=(0,) * blocks,
            has_mid_block=blocks == 1,
            **level,
        )
        for blocks in (1, 2)
    ]
    sizes = {"sample_size": 4, "time_embed_dim": 16, "num_attention_heads": 2, "attention_norm_num_groups": 4}
    model = NestedUNetModel(**sizes, **LevelConfig.columns_from(rows[:1]))
    grown = model.add_level(rows[1])

    def means(measured, **options):
        return level_means(measure(lambda noisy, timesteps, batch: measured(noisy, timesteps).sample, **options))

    before, after = means(model, num_levels=1), means(grown)
    assert after[0] == pytest.approx(before[0], rel=1e-6)
    assert len(after) == 2


def test_a_missing_image_is_an_error():
    samples = HeldOutSamples(lambda rows: load(rows[1:]), 12)
    with pytest.raises(ValueError, match="7 samples for 8 records"):
        measure(samples=samples)


def test_an_empty_set_is_refused():
    with pytest.raises(ValueError, match="at least 1"):
        held_out(0)
    with pytest.raises(ValueError, match="at least 1"):
        held_out(num_images=0)
