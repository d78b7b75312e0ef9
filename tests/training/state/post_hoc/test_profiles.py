# SPDX-License-Identifier: Apache-2.0
"""Power-function averages: widths and exponents, updates, and averages made of others, against direct sums."""

import numpy as np
import pytest

from diffusers_mdm.training.state.post_hoc.profiles import (
    LARGEST_SIGMA_REL,
    Profile,
    combine,
    exponent_of,
    inner_products,
    share_of_update,
)

TIMES = np.linspace(0, 1, 200_001)[1:]


def density(sigma_rel: float, end: float = 1.0) -> np.ndarray:
    """The profile of an average, at `TIMES` of a training that ends at 1."""
    exponent = exponent_of(sigma_rel)
    return (exponent + 1) * TIMES**exponent / end ** (exponent + 1) * (end >= TIMES)


def mean(values: np.ndarray) -> float:
    return float(values.sum() * (TIMES[1] - TIMES[0]))


@pytest.mark.parametrize("width", [0.03, 0.05, 0.1, 0.2, 0.28])
def test_the_width_is_the_standard_deviation_of_the_profile(width):
    profile = density(width)
    center = mean(profile * TIMES)
    assert mean(profile) == pytest.approx(1, abs=1e-4)
    assert mean(profile * (TIMES - center) ** 2) ** 0.5 == pytest.approx(width, rel=1e-3)


def test_known_widths():
    assert exponent_of(LARGEST_SIGMA_REL) == pytest.approx(0, abs=1e-6)  # the mean of all
    assert exponent_of(0.05) == pytest.approx(16.97, abs=0.01)  # Karras et al. 2024, section 3.1
    assert exponent_of(0.10) == pytest.approx(6.94, abs=0.01)


@pytest.mark.parametrize("width", [0, -0.1, 0.3, float("nan")])
def test_other_widths_do_not_exist(width):
    with pytest.raises(ValueError, match="sigma_rel"):
        exponent_of(width)


@pytest.mark.parametrize("width", [0.05, 0.1, 0.25])
def test_updates_give_every_value_the_weight_of_the_profile(width):
    """Of a linear trajectory the average is (γ + 1) / (γ + 2) of its end, up to half of an update."""
    exponent, average, number = exponent_of(width), 0.0, 4000
    for step in range(1, number + 1):
        average += share_of_update(exponent, step) * (step / number - average)
    assert share_of_update(exponent, 1) == 1
    assert average == pytest.approx((exponent + 1) / (exponent + 2), abs=1 / number)


def test_inner_products_are_integrals():
    for one, other in ((0.05, 0.1), (0.1, 0.05), (0.2, 0.2)):
        direct = mean(density(one, 0.6) * density(other))
        first, second = [Profile(one, 600)], [Profile(other, 1000)]
        assert inner_products(first, second)[0, 0] * 1000 == pytest.approx(direct, rel=1e-3)
        assert inner_products(first, second) == inner_products(second, first)


def snapshots(count: int, widths: tuple[float, ...] = (0.05, 0.1)) -> list[Profile]:
    return [Profile(width, 1000 * number // count) for number in range(1, count + 1) for width in widths]


@pytest.mark.parametrize("count", [1, 4, 16, 100])
def test_a_kept_average_is_made_of_itself_alone(count):
    kept = snapshots(count)
    for index in (0, len(kept) - 1, len(kept) // 2):
        weights, error = combine(kept, kept[index])
        expected = np.zeros(len(kept))
        expected[index] = 1
        np.testing.assert_allclose(weights, expected, atol=1e-6)
        assert error < 1e-5


def test_other_widths_come_closer_the_more_snapshots_there_are():
    for width in (0.03, 0.07, 0.15, 0.25):
        found = [combine(snapshots(count), Profile(width, 1000)) for count in (2, 4, 8, 16)]
        errors = [combination.error for combination in found]
        assert errors == sorted(errors, reverse=True)
        assert all(combination.weights.sum() == pytest.approx(1) for combination in found)


@pytest.mark.parametrize(("count", "error"), [(8, 0.06), (16, 0.02)])
def test_few_snapshots_are_enough(count, error):
    """Of every width from 0.05 to 0.18, as the documentation says."""
    assert all(combine(snapshots(count), Profile(width / 100, 1000)).error < error for width in range(5, 19))


def test_the_error_is_the_distance_of_the_profiles():
    kept, wanted = snapshots(4), Profile(0.15, 1000)
    weights, error = combine(kept, wanted)
    made = sum(
        weight * density(part.sigma_rel, part.updates / 1000) for weight, part in zip(weights, kept, strict=True)
    )
    distance = mean((made - density(0.15)) ** 2) / mean(density(0.15) ** 2)
    assert error == pytest.approx(distance**0.5, rel=1e-2)
