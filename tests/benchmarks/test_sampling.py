# SPDX-License-Identifier: Apache-2.0
"""The measures see what they are there to see, costs are counted, and every setting is one that can be drawn."""

import math

import pytest
import sampling
import torch
from PIL import Image

from diffusers_mdm.evaluation.generate import Generation, open_folder, save_levels, write_metadata
from diffusers_mdm.pipelines.drawing.guidance.registry import method_of
from diffusers_mdm.pipelines.drawing.request import check_argument
from diffusers_mdm.schedulers import MatryoshkaScheduler
from tests.evaluation.tiny_images import MeanColours
from tests.pipelines.tiny_pipeline import make_pipeline


def test_true_images_have_no_error():
    images = torch.full((3, 3, 16, 16), 255, dtype=torch.uint8)
    images[0, :, 4:12, 4:12] = 0
    truth = sampling.Truth(list("abc"), images, sampling.thumbnail(images), list("abc"))
    small = torch.nn.functional.avg_pool2d(images.float(), 2).to(torch.uint8)
    assert sampling.measure([small, images], truth) == {"noise": 0.0, "distance": 0.0, "own": 1.0, "levels": 0.0}
    grey = (images.float() * 0.9).to(torch.uint8)
    assert sampling.measure([small, grey], truth)["distance"] == pytest.approx(0.1, abs=0.01)


def test_errors_of_differences_are_paired():
    first = [dict.fromkeys(sampling.MEASURES, value) for value in (1.0, 2.0, 3.0)]
    better = [{key: value - 0.5 for key, value in entry.items()} for entry in first]
    summary = sampling.summarised("better", better, first)
    assert summary["noise"] == [1.5, pytest.approx(1 / 3**0.5)]
    assert summary["noise difference"] == [-0.5, pytest.approx(0.0)]
    assert math.isnan(sampling.standard_error([1.0]))


def test_the_jackknife_error_of_a_mean_is_its_standard_error():
    values = [1.0, 4.0, 2.0, 7.0]
    without = [(sum(values) - value) / 3 for value in values]
    assert sampling.jackknife_error(without) == pytest.approx(sampling.standard_error(values))
    assert math.isnan(sampling.jackknife_error([]))


def test_distances_from_real_images_are_compared_seed_by_seed():
    generator = torch.Generator().manual_seed(0)
    real = sampling.Real(MeanColours(), torch.randn(200, 4, generator=generator))
    first = [torch.randn(30, 4, generator=generator) for _ in range(3)]
    found = sampling.by_features([features + 1 for features in first], first, real)
    assert found["kid"][0] > 0.5
    for name in ("kid difference", "fid difference"):
        assert found[name][0] > 3 * found[name][1] > 0
    assert sampling.by_features(first, first, real)["fid difference"] == [0.0, 0.0]
    of_two = sampling.by_features(first[:2], first[:2], real)
    assert of_two["fid"][0] > 0
    assert math.isnan(of_two["fid"][1])  # without either there are too few images


def test_the_table_has_the_distances_of_those_that_have_them(tmp_path):
    plain = {"name": "plain", "calls": 8, "gigaflops": 1.25, **{key: [0.5, math.nan] for key in sampling.MEASURES}}
    table = sampling.markdown_table([plain, {**plain, "kid": [0.1, 0.01], "fid": [90.0, 2.0]}]).splitlines()
    assert table[0].endswith("| levels | KID | FID |")
    assert table[2].endswith("| 0.5000 ± nan | – | – |")
    assert table[3].endswith("| 0.1000 ± 0.0100 | 90.0 ± 2.0 |")
    assert "KID" not in sampling.markdown_table([plain])
    sampling.plot([plain, {**plain, "kid": [0.1, 0.01]}], tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 10_000


def test_features_of_generated_images_are_computed_once(tmp_path):
    images = torch.randint(256, (3, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    plan = Generation("", "MDMPipeline", 0, 3, "")
    folder = tmp_path / "some-setting" / "0"
    open_folder(folder, plan)
    save_levels([[Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]], [0, 1, 2], folder)
    write_metadata(folder / "16", ["a", "b", "c"], 0)
    real = sampling.Real(MeanColours(), torch.zeros(1, 3))
    expected = MeanColours()(images)
    torch.testing.assert_close(real.of_folder(folder), expected)
    for path in (folder / "16").iterdir():
        path.unlink()
    torch.testing.assert_close(real.of_folder(folder), expected)


def test_what_waits_or_is_reused_costs_less():
    pipe = make_pipeline()
    whole = sampling.costs(pipe, sampling.drawn_in(4, {}), "a red apple")
    assert whole["calls"] == 8  # with guidance
    for cheaper in (sampling.drawn_in(4, {}, open_levels_at=0.0), sampling.drawn_in(4, {}, 2)):
        assert sampling.costs(pipe, cheaper, "a red apple")["gigaflops"] < whole["gigaflops"]


@pytest.mark.parametrize("name", sampling.SETTINGS)
def test_settings_can_be_drawn(name):
    setting = sampling.SETTINGS[name]
    MatryoshkaScheduler(**setting.scheduler)
    for argument, value in setting.call.items():
        check_argument(argument, value)
    method_of(setting.call.get("guider"))
