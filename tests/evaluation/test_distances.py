# SPDX-License-Identifier: Apache-2.0
"""Distances of sets against independent computations and their defining properties."""

import numpy as np
import pytest
import torch

from diffusers_mdm.evaluation.distances import (
    clip_discrepancy,
    frechet_distance,
    kernel_distance,
    kernel_distance_of_all,
    precision_and_recall,
)


def features(number: int, size: int = 8, shift: float = 0.0, scale: float = 1.0, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(size, size, generator=torch.Generator().manual_seed(99))
    return scale * torch.randn(number, size, generator=generator) @ mixing + shift


def square_root(matrix: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(matrix)
    return vectors * np.sqrt(values.clip(min=0)) @ vectors.T


def frechet_by_hand(a: np.ndarray, b: np.ndarray) -> float:
    first, second = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = square_root(first)
    middle = square_root(root @ second @ root)
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(first + second - 2 * middle))


def test_frechet_distance_agrees_with_an_independent_computation():
    drawn, real = features(300, shift=0.5, seed=1), features(400, scale=1.3, seed=2)
    expected = frechet_by_hand(drawn.double().numpy(), real.double().numpy())
    assert expected > 1
    assert frechet_distance(drawn, real) == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("numbers", [(60, 70), (60, 300), (300, 60)])
def test_frechet_distance_with_fewer_images_than_features(numbers):
    drawn, real = (features(number, size=100, seed=number) for number in numbers)
    expected = frechet_by_hand(drawn.double().numpy(), real.double().numpy())
    assert frechet_distance(drawn, real) == pytest.approx(expected, rel=1e-4)


def test_equal_sets_have_no_distance():
    rows = features(200)
    assert frechet_distance(rows, rows) == pytest.approx(0, abs=1e-3)
    assert clip_discrepancy(rows, rows) == pytest.approx(0, abs=1e-9)
    assert precision_and_recall(rows, rows) == (1.0, 1.0)


def test_kernel_distance_agrees_with_the_unbiased_formula():
    drawn, real = features(60, shift=0.3, seed=1).double(), features(60, seed=2).double()

    def kernel(a, b):
        return (a @ b.T / a.shape[1] + 1) ** 3

    own = [kernel(side, side) for side in (drawn, real)]
    terms = [(matrix.sum() - matrix.trace()) / (60 * 59) for matrix in own]
    expected = float(sum(terms) - 2 * kernel(drawn, real).mean())
    found = kernel_distance(drawn, real)
    # The only subset of 60 of 60 images is the whole set, so the result is not random.
    assert found.mean == pytest.approx(expected, rel=1e-4)
    assert found.error == pytest.approx(0, abs=1e-6 * abs(expected))
    assert kernel_distance_of_all(drawn, real) == pytest.approx(expected, rel=1e-9)


def test_kernel_distance_of_all_does_not_depend_on_the_number_of_images_in_the_mean():
    drawn, real = features(7, shift=0.3, seed=1), features(30, seed=2)
    others = [torch.cat([drawn[:left_out], drawn[left_out + 1 :]]) for left_out in range(7)]
    of_six = [kernel_distance_of_all(some, real) for some in others]
    assert np.mean(of_six) == pytest.approx(kernel_distance_of_all(drawn, real), rel=1e-9)


def test_kernel_distance_is_repeatable_and_does_not_change_the_random_state():
    drawn, real = features(80, seed=1), features(120, seed=2)
    state = torch.get_rng_state()
    assert kernel_distance(drawn, real) == kernel_distance(drawn, real)
    assert torch.equal(torch.get_rng_state(), state)


def test_clip_discrepancy_agrees_with_its_formula_and_ignores_lengths():
    drawn, real = features(60, shift=1.0, seed=1), features(50, seed=2)
    a, b = (rows.double() / rows.double().norm(dim=1, keepdim=True) for rows in (drawn, real))

    def mean(x, y):
        return np.mean([[np.exp(-float((u - v).square().sum()) / 200) for v in y] for u in x])

    assert clip_discrepancy(drawn, real) == pytest.approx(1000 * (mean(a, a) + mean(b, b) - 2 * mean(a, b)), rel=1e-6)
    assert clip_discrepancy(3 * drawn, real) == pytest.approx(clip_discrepancy(drawn, real), rel=1e-6)


def test_precision_falls_with_unrelated_images_and_recall_with_missing_ones():
    near, far = features(40, seed=1), features(40, shift=1000.0, seed=2)
    both = torch.cat([near, far])
    precision, recall = precision_and_recall(near, both)
    assert precision == 1.0
    assert recall == pytest.approx(0.5, abs=0.05)
    precision, recall = precision_and_recall(both, near)
    assert precision == pytest.approx(0.5, abs=0.05)
    assert recall == 1.0


@pytest.mark.parametrize("measure", [frechet_distance, kernel_distance, clip_discrepancy, precision_and_recall])
def test_too_few_images_are_refused_with_the_number_needed(measure):
    with pytest.raises(ValueError, match=r"at least \d+ images in each set; there are 4 generated and 80 real"):
        measure(features(4), features(80))


@pytest.mark.parametrize("measure", [frechet_distance, kernel_distance, clip_discrepancy, precision_and_recall])
def test_features_of_two_kinds_are_refused(measure):
    with pytest.raises(
        ValueError,
        match="features of the same kind; those of the generated images have 8 numbers "
        "each, those of the real images 9",
    ):
        measure(features(80), features(80, size=9))
