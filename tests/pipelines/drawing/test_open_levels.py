# SPDX-License-Identifier: Apache-2.0
"""Outer levels that start late: images keep their distribution, and fewer levels run."""

import math

import pytest
import torch

from diffusers_mdm.pipelines.drawing.open_levels import log_snrs
from tests.pipelines.exact_denoiser import GAUSSIAN, draw_exactly, make_exact_pipeline
from tests.pipelines.tiny_pipeline import draw, make_pipeline, make_scheduler
from tests.pipelines.tiny_tasks import task


def test_with_minus_infinity_all_levels_always_run():
    pipe = make_exact_pipeline()
    everywhere = draw_exactly(pipe)
    assert pipe.unet.calls == [2] * 20
    for level, other in zip(draw_exactly(pipe, open_levels_at=-math.inf), everywhere, strict=True):
        assert torch.equal(level, other)


@pytest.mark.parametrize("algorithm", ["ddim", "dpmsolver++"])
def test_fewer_levels_run_and_moments_do_not_change(algorithm):
    """Exact standard deviations along principal components, of many drawings: sampling error is 1 % of each."""
    pipe = make_exact_pipeline(algorithm=algorithm)
    images = draw_exactly(pipe, 5000, open_levels_at=-5.0)
    assert pipe.unet.calls == [1] * 5 + [2] * 15
    everywhere = draw_exactly(pipe, 5000)
    exact, start = GAUSSIAN.exact_covariance(), 0
    for level, other in zip(images, everywhere, strict=True):
        rows, other_rows = level.flatten(1).double(), other.flatten(1).double()
        end = start + rows.shape[1]
        components = torch.linalg.eigh(exact[start:end, start:end]).eigenvectors
        start = end
        spread, whole = (rows @ components).std(0), (other_rows @ components).std(0)
        torch.testing.assert_close(spread / whole, torch.ones_like(spread), atol=0.03, rtol=0)
        assert rows.mean(0).abs().max() < 0.05
    # The levels belong to one image.
    pooled = torch.nn.functional.avg_pool2d(images[1], 2)
    assert (pooled - images[0]).square().mean().sqrt() < 0.03


def test_with_a_threshold_above_all_log_snrs_outer_levels_never_run():
    """The outer level then is the enlarged inner one in previews, and noise in the end."""
    pipe, previews = make_exact_pipeline(), []

    def keep(pipeline, step, timestep, tensors):
        previews.append([level.shape for level in tensors["pred_original_sample"]])
        assert [level.shape for level in tensors["latents"]] == previews[-1]

    draw_exactly(
        pipe,
        open_levels_at=1e3,
        callback_on_step_end=keep,
        callback_on_step_end_tensor_inputs=["latents", "pred_original_sample"],
    )
    assert pipe.unet.calls == [1] * 20
    assert previews == [[(1, 1, 2, 2), (1, 1, 4, 4)]] * 20


def test_levels_are_shifted_by_their_size():
    sample = [torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 16, 16)]
    timestep = torch.tensor(500)
    shifted = log_snrs(make_scheduler(), sample, timestep)
    assert shifted[0] - shifted[1] == pytest.approx(math.log(2), abs=1e-5)
    rescaled = log_snrs(make_scheduler(level_scaling="rescale"), sample, timestep)
    assert rescaled[0] - rescaled[1] == pytest.approx(2 * math.log(2), abs=1e-5)


@pytest.mark.parametrize("name", ["text", "upscale", "exact upscale", "inpaint", "video", "latent upscale", "class"])
@pytest.mark.parametrize("settings", [{"level_agreement": 1.0}, {"open_levels_at": 0.0}], ids=str)
def test_every_pipeline_supports_it_and_images_do_not_depend_on_their_batch(name, settings):
    kind = task(name)
    pipe = kind.make()
    together = kind.draw(pipe, slice(None), **settings)
    assert together.shape[1:] == kind.shape
    # The averages of an upscaled image are the given ones already; rounding to 8 bits may still go another way.
    agrees_anyway = "level_agreement" in settings and "upscale" in name and "latent" not in name
    assert torch.allclose(together, kind.draw(pipe, slice(None)), atol=1.01 / 255) == agrees_anyway
    apart = (kind.draw(pipe, 1, **settings) - together[1:2]).abs()
    # Upscaled latents are decoded to 8 bits, where a difference in the last digit can round a pixel the other way.
    assert apart.max() <= 1.01 / 255
    assert (apart > 2e-4).float().mean() < 0.01


def test_folders_can_have_defaults_for_both():
    pipe = make_pipeline()
    pipe.register_to_config(drawing_defaults={"level_agreement": [1.0], "open_levels_at": -2.0})
    by_folder = draw(pipe)
    pipe.register_to_config(drawing_defaults=None)
    torch.testing.assert_close(by_folder, draw(pipe, level_agreement=1.0, open_levels_at=-2.0))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"level_agreement": 1.5}, "`level_agreement` has to be a number from 0 to 1"),
        ({"level_agreement": []}, "`level_agreement` has to be"),
        ({"open_levels_at": math.inf}, "`open_levels_at` has to be a log SNR"),
        ({"open_levels_at": "early"}, "`open_levels_at` has to be a log SNR"),
        ({"guidance_scale": [3.0]}, "`guidance_scale` has 1 numbers, but 2 levels are generated"),
    ],
)
def test_wrong_values_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        draw(make_pipeline(), **settings)
