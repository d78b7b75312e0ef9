# SPDX-License-Identifier: Apache-2.0
"""Building pyramids and drawing their noise."""

import numpy as np
import pytest
import torch

from diffusers_mdm.pyramid import as_pyramid, build_pyramid, check_pyramid, check_tensor, level_ratios, pyramid_noise


def test_pyramid_is_innermost_first_and_ends_with_the_image():
    images = torch.rand(2, 3, 32, 48)
    pyramid = build_pyramid(images, (4, 16, 32))
    assert [tuple(level.shape) for level in pyramid] == [(2, 3, 4, 6), (2, 3, 16, 24), (2, 3, 32, 48)]
    assert pyramid[-1] is images
    assert level_ratios(pyramid) == [1.0, 4.0, 8.0]


def test_levels_are_averages():
    images = torch.rand(1, 1, 8, 8)
    inner = build_pyramid(images, (2, 4, 8))[0]
    torch.testing.assert_close(inner[0, 0, 0, 1], images[0, 0, :4, 4:].mean())
    constant = build_pyramid(torch.full((1, 3, 8, 8), 0.25), (2, 8))[0]
    torch.testing.assert_close(constant, torch.full((1, 3, 2, 2), 0.25))


@pytest.mark.parametrize(
    ("sides", "message"),
    [((4, 16), "last side"), ((), "last side"), ((3, 8), "whole number"), ((8, 8), "whole number")],
)
def test_sides_that_do_not_divide_are_refused(sides, message):
    with pytest.raises(ValueError, match=message):
        build_pyramid(torch.zeros(1, 3, 8, 8), sides)
    with pytest.raises(ValueError, match="batch, channels"):
        build_pyramid(torch.zeros(3, 8, 8), (8,))


def test_noise_of_a_row_depends_on_its_own_generator_only():
    def generators(*seeds: int) -> list[torch.Generator]:
        return [torch.Generator().manual_seed(seed) for seed in seeds]

    shapes = [(3, 3, 4, 4), (3, 3, 8, 8)]
    batch = pyramid_noise(shapes, generators(1, 2, 3))
    alone = pyramid_noise([(1, *shape[1:]) for shape in shapes], generators(2))
    for level, single in zip(batch, alone, strict=True):
        assert torch.equal(level[1:2], single)
    with pytest.raises(ValueError, match="2 generators for a batch of 3"):
        pyramid_noise(shapes, generators(1, 2))


def test_levels_have_independent_unit_noise():
    inner, outer = pyramid_noise([(64, 3, 8, 8), (64, 3, 16, 16)], torch.Generator().manual_seed(0))
    for level in (inner, outer):
        # 12,288 and more draws: three standard errors of mean and variance.
        assert abs(level.mean()) < 3 / level.numel() ** 0.5
        assert abs(level.var() - 1) < 3 * (2 / level.numel()) ** 0.5
    pooled = torch.nn.functional.avg_pool2d(outer, 2)
    correlation = torch.corrcoef(torch.stack([inner.flatten(), pooled.flatten()]))[0, 1]
    assert abs(correlation) < 3 / inner.numel() ** 0.5


def test_what_is_no_pyramid_is_refused():
    with pytest.raises(ValueError, match="list of tensors"):
        as_pyramid([1, 2])
    with pytest.raises(ValueError, match="channels"):
        check_pyramid([torch.zeros(1, 3, 4, 4), torch.zeros(1, 4, 8, 8)])
    with pytest.raises(ValueError, match="cannot have larger batches"):
        check_pyramid([torch.zeros(1, 3, 4, 4), torch.zeros(2, 3, 8, 8)])


@pytest.mark.parametrize(
    ("value", "is_floating", "message"),
    [
        (np.zeros(2), None, r"`x` is .*\(ndarray\); expected a tensor"),
        ([0.0], None, r"\(list\)"),
        (torch.zeros(2, dtype=torch.int64), True, "holds torch.int64; .* floating-point numbers"),
        (torch.zeros(2), False, "holds torch.float32; .* whole numbers"),
        (torch.zeros(2, dtype=torch.bool), False, "holds torch.bool"),
        (torch.zeros(2, dtype=torch.complex64), True, "holds torch.complex64"),
    ],
)
def test_tensors_of_another_kind_are_refused(value, is_floating, message):
    check_tensor(torch.zeros(2, dtype=torch.float16), "x", "a tensor", is_floating=True)
    check_tensor(torch.zeros(2, dtype=torch.uint8), "x", "a tensor", is_floating=False)
    with pytest.raises(TypeError, match=message):
        check_tensor(value, "x", "a tensor", is_floating)
