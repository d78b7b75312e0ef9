# SPDX-License-Identifier: Apache-2.0
"""Scores: each level is compared with real images of its own size; impossible requests are refused."""

import json

import numpy as np
import pytest
import torch

from diffusers_mdm.evaluation.distances import frechet_distance
from diffusers_mdm.evaluation.generate import Generation
from diffusers_mdm.evaluation.images import TensorImages, average_down
from diffusers_mdm.evaluation.reference import make_reference
from diffusers_mdm.evaluation.report import card_section, contact_sheet, markdown_table
from diffusers_mdm.evaluation.score import score
from tests.evaluation.tiny_images import MeanColours, random_images

INCEPTION = MeanColours()


@pytest.fixture(scope="module")
def reference():
    return make_reference(random_images(80), [INCEPTION], (16, 32))


def as_levels(images):
    inner = TensorImages(average_down(images.pixels, 16), images.captions)
    return [inner, images]


def grainy(images, strength):
    grain = strength * torch.randn(images.pixels.shape, generator=torch.Generator().manual_seed(3))
    return TensorImages((images.pixels + grain).round().clamp(0, 255).to(torch.uint8), images.captions)


def test_each_level_is_compared_with_images_of_its_size(reference):
    drawn = random_images(60, seed=5)
    found = score(as_levels(drawn), reference, [INCEPTION], ["fid", "kid", "precision_recall"])
    assert sorted(found.levels) == [16, 32]
    real = random_images(80).pixels
    expected = frechet_distance(INCEPTION(average_down(drawn.pixels, 16)), INCEPTION(average_down(real, 16)))
    assert found.levels[16]["fid"] == pytest.approx(expected, abs=1e-9)
    assert found.levels[32].keys() == {"fid", "kid", "kid_error", "precision", "recall"}
    assert (found.num_drawn, found.num_real) == (60, 80)
    assert found.fingerprints == {"inception": "mean colours"}
    json.dumps(found.as_json(), allow_nan=False)


def test_real_images_score_better_than_unrelated_ones_and_noise_is_measured(reference):
    truth = random_images(80)
    metrics = ["fid", "retrieval", "noise"]
    same = score(as_levels(truth), reference, [INCEPTION], metrics, truth)
    grain = score(as_levels(grainy(truth, 12.0)), reference, [INCEPTION], metrics, truth)
    strangers = score(as_levels(random_images(80, seed=9)), reference, [INCEPTION], metrics, truth)
    assert same.levels[32]["fid"] == pytest.approx(0, abs=1e-3)
    assert same.levels[32]["retrieval_own_image"] == 1.0
    assert same.levels[32]["distance_to_truth"] == 0.0
    assert strangers.levels[32]["fid"] > grain.levels[32]["fid"]
    assert strangers.levels[32]["retrieval_own_image"] < 0.2
    assert grain.levels[32]["distance_to_truth"] == pytest.approx(12 / 255, rel=0.1)


def test_disagreement_of_levels_is_measured(reference):
    truth, other = random_images(80), random_images(80, seed=9)
    agreeing = score(as_levels(truth), reference, [INCEPTION], ["retrieval"])
    mixed = score([as_levels(other)[0], truth], reference, [INCEPTION], ["retrieval"])
    assert agreeing.disagreement[0] <= 0.5 / 255 < mixed.disagreement[0]


def test_errors_of_impossible_requests_name_what_is_missing(reference):
    levels = as_levels(random_images(60))
    with pytest.raises(ValueError, match="Unknown metrics beauty; choose from fid"):
        score(levels, reference, [INCEPTION], ["beauty"])
    with pytest.raises(ValueError, match="'cmmd' needs an extractor for the features 'clip'"):
        score(levels, reference, [INCEPTION], ["cmmd"])
    with pytest.raises(ValueError, match="cannot be compared"):
        score(levels, reference, [MeanColours(fingerprint="other weights")], ["fid"])
    with pytest.raises(ValueError, match="pass them as `truth`"):
        score(levels, reference, [INCEPTION], ["noise"])
    message = r"have 8 pixels, but the reference has features for 16, 32\. .*`evaluate reference .*--sides 8 16 32 "
    with pytest.raises(ValueError, match=message):
        score([random_images(60, side=8)], reference, [INCEPTION], ["fid", "retrieval"])
    with pytest.raises(ValueError, match="at least 50 images"):
        score(as_levels(random_images(10)), reference, [INCEPTION], ["fid"])


def test_sides_that_the_reference_lacks_are_left_out_and_named(reference):
    drawn = random_images(60, side=64, seed=5)
    levels = [TensorImages(average_down(drawn.pixels, side), drawn.captions) for side in (16, 64)]
    found = score(levels, reference, [INCEPTION], ["fid", "retrieval"])
    assert found.left_out == {64: ["fid"]}
    assert found.levels[16]["fid"] == score(levels[:1], reference, [INCEPTION], ["fid"]).levels[16]["fid"]
    assert "fid" not in found.levels[64]
    assert "retrieval_own_image" in found.levels[64]
    assert json.loads(json.dumps(found.as_json()))["left_out"] == {"64": ["fid"]}
    section = card_section(found, Generation("folder", "MDMPipeline", 3, 60, "0" * 16, {}), "evaluate score")
    assert "Left out, because the reference has no features for them: fid at 64 pixels.\n" in section


def test_reports_contain_every_level(reference):
    drawn = random_images(60, seed=5)
    found = score(as_levels(drawn), reference, [INCEPTION], ["fid", "kid", "retrieval"])
    table = markdown_table(found)
    assert table.splitlines()[0] == "| | 16 px | 32 px |"
    assert "| Fréchet distance (Inception-v3) | " in table
    assert f"{found.levels[32]['retrieval_own_image']:.1%}" in table
    plan = Generation("folder", "MDMPipeline", 3, 60, "0" * 16, {"num_inference_steps": 25})
    section = card_section(found, plan, "python training/evaluate.py score")
    assert "60 generated images (num_inference_steps 25; seeds from 3) compared with 80 real images" in section


def test_contact_sheets_show_real_images_below(reference):
    drawn, truth = random_images(5, seed=5), random_images(5, side=64)
    sheet = contact_sheet([drawn], truth, number=4, columns=3)
    assert sheet.size == (3 * 34 + 2, 2 * (2 * 34 + 4) + 2)
    first = torch.from_numpy(np.array(sheet.crop((2, 2, 34, 34))))
    assert torch.equal(first.permute(2, 0, 1), drawn.pixels[0])
    assert contact_sheet([drawn], None, number=2, columns=9).size == (2 * 34 + 2, 34 + 4 + 2)


def test_contact_sheets_show_several_models_above_each_other():
    small, large, truth = random_images(3, side=16, seed=5), random_images(3, side=32, seed=6), random_images(3)
    sheet = np.array(contact_sheet([small, large], truth, number=2))
    assert sheet.shape == (3 * 34 + 4 + 2, 2 * 34 + 2, 3)
    for place, pixels in enumerate([small.pixels.repeat_interleave(2, 2).repeat_interleave(2, 3), large.pixels]):
        top = 2 + 34 * place
        assert np.array_equal(sheet[top : top + 32, 36:68], pixels[1].permute(1, 2, 0).numpy())
    others = random_images(3, captions=["a", "b", "c"])
    with pytest.raises(ValueError, match="different captions; run `diffusers-mdm evaluate generate`"):
        contact_sheet([small, others], None)
