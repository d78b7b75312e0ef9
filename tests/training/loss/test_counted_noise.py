# SPDX-License-Identifier: Apache-2.0
"""The hash is SplitMix64's, and its numbers are uniform, normal, and unrelated between samples and streams."""

import math

import torch

from diffusers_mdm.training.loss.counted_noise import normal_numbers, stream_keys, uniform_numbers


def split_mix(state: int) -> int:
    """SplitMix64's output function, on unsigned integers."""
    mask = 2**64 - 1
    state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 & mask
    state = (state ^ (state >> 27)) * 0x94D049BB133111EB & mask
    return state ^ (state >> 31)


def test_numbers_are_those_of_split_mix():
    step, key = 0x9E3779B97F4A7C15, 2**63 + 12345
    expected = [split_mix((key + n * step) % 2**64) >> 11 for n in range(1, 6)]
    numbers = uniform_numbers(torch.tensor([key - 2**64]), 5)
    assert (numbers[0] * 2**53).long().tolist() == expected
    # The first output of the published generator with the seed 0
    assert split_mix(step) == 0xE220A8397B1DCDAF


def test_uniform_numbers_are_uniform():
    numbers = uniform_numbers(torch.arange(500), 400).flatten()
    assert numbers.min() >= 0
    assert numbers.max() < 1
    shares = torch.histc(numbers.float(), 20, 0, 1) / len(numbers)
    # 200,000 numbers: the standard error of a share of 0.05 is 0.0005
    torch.testing.assert_close(shares, torch.full((20,), 0.05), rtol=0, atol=0.0025)


def test_normal_numbers_are_normal():
    numbers = normal_numbers(torch.arange(64), (3, 32, 33))
    assert numbers.shape == (64, 3, 32, 33)
    assert numbers.dtype == torch.float32
    assert numbers.isfinite().all()
    assert numbers.abs().max() < 6.7
    count = numbers.numel()
    for power, moment in ((1, 0), (2, 1), (3, 0), (4, 3)):
        spread = math.sqrt(math.prod(range(1, 2 * power, 2)) - moment**2) / math.sqrt(count)
        assert abs(numbers.pow(power).mean().item() - moment) < 5 * spread


def test_samples_streams_and_pixels_are_unrelated():
    keys = torch.arange(40)
    first, second = (normal_numbers(stream_keys(keys, stream), (2500,)) for stream in (0, 1))
    everything = torch.cat([first, second])
    products = everything @ everything.T / 2500
    unrelated = products[~torch.eye(80, dtype=torch.bool)]
    # The standard error of each mean of 2,500 products is 0.02; 6,320 of them stay below 5 of them.
    assert unrelated.abs().max() < 0.1
    neighbours = (first[:, 1:] * first[:, :-1]).mean()
    assert neighbours.abs() < 5 / math.sqrt(first.numel())


def test_a_sample_depends_on_its_key_alone():
    keys = torch.tensor([5, -9, 2**62])
    together = normal_numbers(keys, (3, 5))
    for row, key in enumerate(keys):
        # The same numbers; the vectorised logarithm may differ in the last digit.
        torch.testing.assert_close(normal_numbers(key[None], (3, 5))[0], together[row], rtol=0, atol=1e-6)
    assert keys.tolist() == [5, -9, 2**62]
