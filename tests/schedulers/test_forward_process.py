# SPDX-License-Identifier: Apache-2.0
"""Noisy samples and velocities, as training uses them."""

import pytest
import torch

from diffusers_mdm.pyramid import build_pyramid, pyramid_noise
from diffusers_mdm.schedulers import MatryoshkaScheduler

SIDES = (4, 16, 64)


@pytest.fixture
def pyramid():
    return build_pyramid(torch.rand(4, 3, 64, 64) * 2 - 1, SIDES)


@pytest.fixture
def noise(pyramid):
    return pyramid_noise([level.shape for level in pyramid])


def test_unit_variance_stays(device):
    shapes = [(16, 3, 32, 32), (16, 3, 128, 128)]
    clean, noise = ([level.to(device) for level in pyramid_noise(shapes)] for _ in range(2))
    for t in (0, 300, 700, 999):
        for level in MatryoshkaScheduler(shift_power=2.0).add_noise(clean, noise, torch.tensor(t, device=device)):
            assert level.var().item() == pytest.approx(1, abs=0.03)


def test_velocity_and_sample_are_a_rotation_of_clean_and_noise(pyramid, noise):
    scheduler, times = MatryoshkaScheduler(), torch.tensor([0, 100, 500, 999])
    powers = scheduler.level_alphas_cumprod(pyramid, times)
    noisy, velocity = scheduler.add_noise(pyramid, noise, times), scheduler.get_velocity(pyramid, noise, times)
    for clean, eps, z, v, power in zip(pyramid, noise, noisy, velocity, powers, strict=True):
        alpha, sigma = power[:, None, None, None] ** 0.5, (1 - power[:, None, None, None]) ** 0.5
        torch.testing.assert_close(alpha * z - sigma * v, clean, atol=1e-6, rtol=0)
        torch.testing.assert_close(sigma * z + alpha * v, eps, atol=1e-6, rtol=0)


def test_batches_may_thin_outwards(pyramid, noise):
    scheduler, times = MatryoshkaScheduler(), torch.tensor([5, 400, 800, 20])
    rows = (4, 2, 1)
    thin, thin_noise = ([level[:n] for level, n in zip(levels, rows, strict=True)] for levels in (pyramid, noise))
    for method in (scheduler.add_noise, scheduler.get_velocity):
        for full, part, n in zip(method(pyramid, noise, times), method(thin, thin_noise, times), rows, strict=True):
            assert torch.equal(full[:n], part)


def test_one_timestep_serves_all_rows(pyramid, noise):
    scheduler = MatryoshkaScheduler()
    expected = scheduler.add_noise(pyramid, noise, torch.full((4,), 321))
    for timesteps in (torch.tensor(321), torch.tensor([321])):
        for level, other in zip(scheduler.add_noise(pyramid, noise, timesteps), expected, strict=True):
            assert torch.equal(level, other)


def test_bare_tensor_is_a_pyramid_of_one_level(pyramid, noise):
    scheduler, times = MatryoshkaScheduler(base_sample_size=4), torch.tensor([5, 400, 800, 20])
    bare = scheduler.add_noise(pyramid[0], noise[0], times)
    assert isinstance(bare, torch.Tensor)
    assert torch.equal(bare, scheduler.add_noise(pyramid[:1], noise[:1], times)[0])


def test_bare_tensor_is_shifted_by_its_size_beside_level_0(pyramid, noise):
    scheduler, times = MatryoshkaScheduler(base_sample_size=4), torch.tensor([5, 400, 800, 20])
    whole = scheduler.add_noise(pyramid, noise, times)
    for clean, eps, level in zip(pyramid, noise, whole, strict=True):
        assert torch.equal(scheduler.add_noise(clean, eps, times), level)
    wide = torch.zeros(1, 3, 4, 12)
    assert scheduler.level_alphas_cumprod(wide, torch.tensor([500]))[0] == scheduler.alphas_cumprod[500]
    small = torch.zeros(1, 3, 2, 2)
    assert scheduler.level_alphas_cumprod(small, torch.tensor([500]))[0] == scheduler.alphas_cumprod[500]


def test_rescaled_levels_share_the_schedule(pyramid, noise):
    scheduler, times = MatryoshkaScheduler(level_scaling="rescale"), torch.tensor([5, 400, 800, 20])
    powers = scheduler.level_alphas_cumprod(pyramid, times)
    assert all(torch.equal(power, powers[0]) for power in powers)
    divided = [level / ratio for level, ratio in zip(pyramid, (1, 4, 16), strict=True)]
    same_schedule = MatryoshkaScheduler(shift_power=0.0)
    for method in ("add_noise", "get_velocity"):
        actual = getattr(scheduler, method)(pyramid, noise, times)
        expected = getattr(same_schedule, method)(divided, noise, times)
        for level, other in zip(actual, expected, strict=True):
            torch.testing.assert_close(level, other)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtype_is_kept_and_half_precision_rounded_once(pyramid, noise, dtype):
    scheduler, times = MatryoshkaScheduler(), torch.tensor([5, 400, 800, 20])
    clean, eps = ([level.to(dtype) for level in levels] for levels in (pyramid, noise))
    expected = scheduler.add_noise([x.double() for x in clean], [x.double() for x in eps], times)
    for level, other in zip(scheduler.add_noise(clean, eps, times), expected, strict=True):
        assert level.dtype == dtype
        torch.testing.assert_close(level, other.to(dtype), atol=1e-6, rtol=torch.finfo(dtype).eps)


def test_gradients_flow(pyramid, noise):
    clean = [level.requires_grad_() for level in pyramid]
    MatryoshkaScheduler().add_noise(clean, noise, torch.tensor(0))[2].sum().backward()
    assert clean[2].grad is not None


@pytest.mark.parametrize(
    ("timesteps", "message"),
    [
        (torch.tensor([1, 2]), "one for each sample"),
        (torch.tensor([0, 1, 2, 1000]), "0 to 999"),
        (torch.tensor([0, 1, 2, -1]), "0 to 999"),
        (torch.tensor([0.0, 1.0, 2.0, 3.0]), "whole numbers"),
    ],
)
def test_bad_timesteps_are_refused(pyramid, noise, timesteps, message):
    with pytest.raises(ValueError, match=message):
        MatryoshkaScheduler().add_noise(pyramid, noise, timesteps)


def test_noise_of_other_shapes_is_refused(pyramid, noise):
    with pytest.raises(ValueError, match="`noise` has levels"):
        MatryoshkaScheduler().add_noise(pyramid, noise[:2], torch.tensor(3))
    with pytest.raises(ValueError, match="`noise` has levels"):
        MatryoshkaScheduler().add_noise(pyramid, [level[:1] for level in noise], torch.tensor(3))
