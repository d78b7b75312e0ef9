# SPDX-License-Identifier: Apache-2.0
"""Both kinds of random numbers depend on place and position alone."""

import pytest
import torch

from diffusers_mdm.training.loss.draws import CountedDraws, GeneratorDraws, SampleDraws, sample_draws

CPU = torch.device("cpu")
SHAPES = [(4, 3, 4, 4), (2, 3, 8, 8)]


@pytest.fixture(params=[GeneratorDraws, CountedDraws])
def kind(request):
    return request.param


def numbers(draws: SampleDraws, rows: int = 4, offset: float = 0.0) -> list[torch.Tensor]:
    shapes = [(min(rows, shape[0]), *shape[1:]) for shape in SHAPES]
    return [draws.chances(), torch.tensor(draws.timestep_chances()), *draws.noise(shapes, offset)]


def test_a_sample_has_the_same_numbers_in_every_batch(kind):
    whole = numbers(kind((1, 2, 3), torch.tensor([7, 8, 2**40, 10]), CPU))
    single = numbers(kind((1, 2, 3), torch.tensor([8]), CPU), rows=1)
    for all_rows, row in zip(whole, single, strict=True):
        torch.testing.assert_close(row[0], all_rows[1], rtol=0, atol=1e-6)


def test_places_and_positions_have_their_own_numbers(kind):
    seen = [numbers(kind(place, torch.tensor([5]), CPU), rows=1) for place in ((0, 0, 0), (0, 0, 1), (0, 1, 0))]
    seen.append(numbers(kind((0, 0, 0), torch.tensor([6]), CPU), rows=1))
    for entry in range(4):
        assert len({values[entry].flatten()[0].item() for values in seen}) == 4


def test_an_offset_shifts_whole_channels(kind):
    plain, shifted = (kind((0,), torch.tensor([1, 2, 3, 4]), CPU).noise(SHAPES, offset) for offset in (0.0, 0.5))
    for without, level in zip(plain, shifted, strict=True):
        shift = level - without
        torch.testing.assert_close(shift, shift[:, :, :1, :1].expand_as(shift), rtol=0, atol=1e-5)
        assert len(shift[:, :, 0, 0].flatten().unique()) == shift[:, :, 0, 0].numel()


def test_generators_of_latents_differ_between_samples(kind):
    generators = kind((0,), torch.tensor([1, 2, 3]), CPU).latent_generators()
    assert len({torch.rand((), generator=generator).item() for generator in generators}) == 3


def test_generators_continue_from_one_use_to_the_next():
    """The order in which older runs took their numbers, so that these resume with the same ones."""
    draws = GeneratorDraws((3,), torch.tensor([9]), CPU)
    generator = GeneratorDraws((3,), torch.tensor([9]), CPU).generators[0]
    expected = [torch.rand(2, generator=generator), torch.rand((), generator=generator, dtype=torch.float64)]
    assert torch.equal(draws.chances()[0], expected[0])
    assert draws.timestep_chances() == [expected[1].item()]
    assert torch.equal(draws.noise([(1, 3, 4, 4)])[0], torch.randn(1, 3, 4, 4, generator=generator))


def test_processors_take_generators():
    assert isinstance(sample_draws((0,), torch.tensor([0]), CPU), GeneratorDraws)
    assert isinstance(sample_draws((0,), torch.tensor([0]), torch.device("cuda")), CountedDraws)
