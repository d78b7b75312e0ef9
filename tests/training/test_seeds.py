# SPDX-License-Identifier: Apache-2.0
"""Seeds are functions of their numbers, and unlike for whatever differs."""

import itertools

import torch

from diffusers_mdm.training.seeds import derive_seed


def test_they_are_the_same_for_ever():
    """Runs of older versions go on with the numbers that they began with."""
    recorded = {(0,): 7896617691693857887, (1, 2, 3): 1502106318634021856, (2**40,): 7918458668934761820}
    assert {numbers: derive_seed(*numbers) for numbers in recorded} == recorded


def test_all_numbers_and_their_order_count():
    numbers = [*itertools.product(range(4), repeat=3), (2**32, 0, 0), (2**62, 1, 0), (5,), (5, 1)]
    seeds = {derive_seed(*each) for each in numbers}
    assert len(seeds) == len(numbers)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_neighbours_are_unrelated():
    draws = torch.stack(
        [torch.randn(500, generator=torch.Generator().manual_seed(derive_seed(7, step))) for step in range(40)]
    )
    correlations = torch.corrcoef(draws) - torch.eye(40)
    assert correlations.abs().max() < 0.25  # five and a half standard deviations of 500 pairs
