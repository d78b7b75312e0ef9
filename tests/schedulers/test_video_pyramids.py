# SPDX-License-Identifier: Apache-2.0
"""Clips are diffused as the published code does: as if their frames were tiled in one image."""

import pytest
import torch

from diffusers_mdm.models.frames import tile_frames
from diffusers_mdm.pyramid import build_pyramid, pyramid_noise
from diffusers_mdm.schedulers import MatryoshkaScheduler

# Frames and sides: 1 → 4 → 16 frames of 8 pixels, then 16 frames of 16.
SHAPES = [(3, 3, 1, 8, 8), (2, 3, 4, 8, 8), (2, 3, 16, 8, 8), (1, 3, 16, 16, 16)]


def clips(seed: int) -> list[torch.Tensor]:
    return pyramid_noise(SHAPES, torch.Generator().manual_seed(seed))


def tiled(pyramid: list[torch.Tensor]) -> list[torch.Tensor]:
    return [tile_frames(level) for level in pyramid]


def assert_same(clip_levels: list[torch.Tensor], image_levels: list[torch.Tensor]) -> None:
    assert [tuple(level.shape) for level in clip_levels] == SHAPES
    for clip, image in zip(clip_levels, image_levels, strict=True):
        assert torch.equal(tile_frames(clip), image)


@pytest.mark.parametrize("scaling", ["shift", "rescale"])
def test_noise_and_targets_are_those_of_tiled_frames(scaling):
    scheduler = MatryoshkaScheduler(level_scaling=scaling, base_sample_size=8, shift_power=2.0)
    clean, noise, timesteps = clips(0), clips(1), torch.tensor([3, 500, 999])
    for method in (scheduler.add_noise, scheduler.get_velocity):
        assert_same(method(clean, noise, timesteps), method(tiled(clean), tiled(noise), timesteps))
    powers = scheduler.level_alphas_cumprod(clean, timesteps)
    assert [len(power) for power in powers] == [3, 2, 2, 1]
    assert all(
        torch.equal(one, other)
        for one, other in zip(powers, scheduler.level_alphas_cumprod(tiled(clean), timesteps), strict=True)
    )


@pytest.mark.parametrize(
    ("config", "eta"),
    [
        ({}, 0.0),
        ({}, 1.0),
        ({}, None),
        ({"thresholding": True, "dynamic_thresholding_ratio": 0.9, "sample_max_value": 1.5}, 0.0),
        ({"algorithm": "dpmsolver++"}, 0.0),
        ({"level_scaling": "rescale"}, 0.0),
    ],
)
def test_steps_are_those_of_tiled_frames(config, eta):
    schedulers = [MatryoshkaScheduler(base_sample_size=8, **config) for _ in range(2)]
    for scheduler in schedulers:
        scheduler.set_timesteps(4)
    video, images = clips(2), tiled(clips(2))
    for step, t in enumerate(schedulers[0].timesteps):
        output, noise = clips(10 + step), clips(20 + step) if eta != 0 and step < 3 else None
        video = schedulers[0].step(output, t, video, eta=eta, variance_noise=noise).prev_sample
        noise = None if noise is None else tiled(noise)
        images = schedulers[1].step(tiled(output), t, images, eta=eta, variance_noise=noise).prev_sample
        assert_same(video, images)


def test_more_frames_of_one_size_get_a_shifted_schedule():
    """16 times the frames have 4 times the side when tiled: the SNR is divided by 4 at p = 1."""
    scheduler = MatryoshkaScheduler()
    timesteps = torch.tensor([300])
    one, many = scheduler.level_alphas_cumprod([torch.zeros(1, 3, 1, 8, 8), torch.zeros(1, 3, 16, 8, 8)], timesteps)
    torch.testing.assert_close(many / (1 - many), one / (1 - one) / 4, rtol=1e-4, atol=0)
    same = scheduler.level_alphas_cumprod([torch.zeros(1, 3, 4, 8, 8), torch.zeros(1, 3, 4, 16, 16)], timesteps)
    torch.testing.assert_close(same[1] / (1 - same[1]), same[0] / (1 - same[0]) / 2, rtol=1e-4, atol=0)


def test_bare_clips_are_level_zero():
    scheduler = MatryoshkaScheduler(base_sample_size=8)
    clip, noise = torch.randn(2, 3, 4, 8, 8), torch.randn(2, 3, 4, 8, 8)
    noisy = scheduler.add_noise(clip, noise, torch.tensor([10, 900]))
    assert torch.equal(noisy, scheduler.add_noise([clip], [noise], torch.tensor([10, 900]))[0])


def test_perfect_predictions_lead_to_the_clip():
    scheduler = MatryoshkaScheduler(base_sample_size=4)
    scheduler.set_timesteps(5)
    clean = build_pyramid(torch.rand(2, 3, 4, 8, 8) * 2 - 1, (4, 8, 8), (1, 1, 4))
    noise = pyramid_noise([level.shape for level in clean], torch.Generator().manual_seed(0))
    sample = scheduler.add_noise(clean, noise, scheduler.timesteps[0])
    for t in scheduler.timesteps:
        sample = scheduler.step(scheduler.get_velocity(clean, noise, t), t, sample).prev_sample
    for level, expected in zip(sample, clean, strict=True):
        torch.testing.assert_close(level, expected, rtol=0, atol=1e-4)


def test_noise_of_a_clip_depends_on_its_own_generator_only():
    def drawn(rows: list[int]) -> list[torch.Tensor]:
        scheduler = MatryoshkaScheduler(base_sample_size=8)
        scheduler.set_timesteps(4)
        sample = [level[rows] for level in pyramid_noise([(2, 3, 1, 8, 8), (2, 3, 4, 8, 8)], torch.manual_seed(3))]
        generators = [torch.Generator().manual_seed(row) for row in rows]
        return scheduler.step(sample, scheduler.timesteps[0], sample, eta=1.0, generator=generators).prev_sample

    for both, alone in zip(drawn([0, 1]), drawn([1]), strict=True):
        assert torch.equal(both[1:], alone)


def test_clips_of_other_lengths_are_refused():
    scheduler = MatryoshkaScheduler()
    clip, shorter = [torch.zeros(1, 3, 4, 8, 8)], [torch.zeros(1, 3, 3, 8, 8)]
    with pytest.raises(ValueError, match="Both must agree"):
        scheduler.add_noise(clip, shorter, torch.tensor([5]))
    with pytest.raises(ValueError, match="dimensions"):
        scheduler.add_noise([torch.zeros(1, 3, 8, 8), *clip], [torch.zeros(1, 3, 8, 8), *clip], torch.tensor([5]))
