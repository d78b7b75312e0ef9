# SPDX-License-Identifier: Apache-2.0
"""The measures see what they are there to see, and the command writes what it measured."""

import json
import math

import pytest
import torch
import torch.nn.functional as F
import upscaling


@pytest.fixture(scope="module")
def held_out() -> upscaling.HeldOut:
    return upscaling.load_held_out(upscaling.DATA_DIR, "tuning", 6, (16, 64))


def test_halves_are_disjoint_and_the_same_every_time():
    tuning, report = (upscaling.split_numbers(11, split, None) for split in upscaling.SPLITS)
    assert sorted(tuning + report) == list(range(11))
    assert upscaling.split_numbers(11, "report", 3) == report[:3]


def test_small_images_are_averages_of_the_large_ones(held_out):
    assert held_out.large.shape == (6, 3, 64, 64)
    torch.testing.assert_close(held_out.small, F.avg_pool2d(held_out.large, 4))
    assert [len(batch.captions) for batch in held_out.batches(4)] == [4, 2]


def test_true_images_have_no_error(held_out):
    values = upscaling.measure(held_out.large, held_out.large, held_out.small)
    for name, at_truth in {"mse": 0, "psnr": 100, "ssim": 1, "spectrum": 0, "detail": 0, "given": 0}.items():
        torch.testing.assert_close(values[name], torch.full((6,), float(at_truth)), atol=1e-3, rtol=0)


def test_squared_error_and_given_error_of_a_known_offset():
    truth = torch.full((1, 3, 16, 16), 0.5)
    values = upscaling.measure(truth + 0.1, truth, F.avg_pool2d(truth, 4))
    assert values["mse"].item() == pytest.approx(0.01, rel=1e-4)
    assert values["psnr"].item() == pytest.approx(20, rel=1e-4)
    assert values["given"].item() == pytest.approx(25.5, rel=1e-4)
    assert values["spectrum"].item() == pytest.approx(0, abs=1e-2)


def test_power_of_a_wave_stands_in_its_ring():
    wave = torch.cos(2 * math.pi * 5 * torch.arange(32) / 32).expand(1, 3, 32, 32)
    powers = upscaling.ring_powers(wave)[0]
    assert powers.shape == (16,)
    assert powers.argmax() == 5 - 1
    assert powers[4] > 1e6 * powers[torch.arange(16) != 4].max()


def test_spectrum_sees_blur_and_grain_but_no_shift(held_out):
    draw = torch.Generator().manual_seed(0)
    changed = {
        "shift": held_out.large.roll((2, 1), dims=(2, 3)),
        "blur": F.avg_pool2d(held_out.large, 3, stride=1, padding=1, count_include_pad=False),
        "grain": held_out.large + 0.1 * torch.randn(held_out.large.shape, generator=draw),
    }
    values = {name: upscaling.measure(entry, held_out.large, held_out.small) for name, entry in changed.items()}
    assert values["shift"]["spectrum"].max() < 1e-3
    assert (values["blur"]["detail"] < -2).all()
    assert (values["grain"]["detail"] > 0.1).all()
    assert (values["blur"]["spectrum"] > 1).all()
    assert (values["grain"]["spectrum"] > 0.5).all()


def test_filters_keep_what_they_should(held_out):
    images = upscaling.filtered(held_out)
    assert torch.equal(images["nearest"][..., ::4, ::4], held_out.small)
    for name in ("bicubic", "lanczos"):
        assert images[name].shape == held_out.large.shape
        assert upscaling.measure(images[name], held_out.large, held_out.small)["given"].min() > 0.1
    projected = upscaling.measure(images[upscaling.PROJECTED], held_out.large, held_out.small)
    assert projected["given"].max() < 1e-3
    flat = torch.full((1, 3, 16, 16), 0.3)
    torch.testing.assert_close(upscaling.enlarge(flat, 64, upscaling.FILTERS["bicubic"]), F.interpolate(flat, 64))


def test_differences_are_paired_and_detail_is_a_distance():
    values = {
        "bicubic": {"mse": torch.tensor([1.0, 5.0]), "detail": torch.tensor([-4.0, -6.0])},
        "other": {"mse": torch.tensor([0.0, 4.0]), "detail": torch.tensor([1.0, 1.0])},
    }
    other = upscaling.summarise(values, "bicubic")["other"]
    assert other["mse"]["over bicubic"] == [-1.0, 0.0]
    assert other["detail"]["mean"] == [1.0, 0.0]
    assert other["detail"]["over bicubic"] == pytest.approx([-4.0, 1.0])


def test_settings_are_compared_with_the_first_ones_image_by_image(tmp_path):
    methods = ("bicubic", upscaling.ONE, upscaling.MEAN)
    for eta, errors in ((1.0, [0.02, 0.04]), (0.0, [0.03, 0.05])):
        measured = {method: {"mse": torch.tensor(errors)} for method in (*methods, "nearest")}
        upscaling.add_tried(tmp_path / "new", upscaling.Settings(eta=eta), measured)
    tried = upscaling.read_tried(tmp_path / "new")
    assert [entry["settings"]["eta"] for entry in tried] == [1.0, 0.0]
    assert set(tried[0]["values"]) == set(methods)
    last = upscaling.table_of_tried(tried).splitlines()[-1]
    assert last == "| 5, 1, 4, 0 | 0.0400 ± 0.0100 | 0.0100 ± 0.0000 | 0.0400 ± 0.0100 | 0.0100 ± 0.0000 |"
    assert upscaling.read_tried(None) == upscaling.read_tried(tmp_path) == []


def test_drawings_have_seeds_of_their_own():
    first, second, other = (draw.initial_seed() for draw in upscaling.generators([7, 8], 2)[:3])
    assert len({first, second, other}) == 3
    assert upscaling.generators([7], 1)[0].initial_seed() == first


@pytest.mark.slow
def test_command_writes_numbers_and_grid(tmp_path, capsys):
    settings = ["--num_images", "2", "--num_samples", "2", "--num_inference_steps", "2"]
    upscaling.main([*settings, "--output_dir", str(tmp_path)])
    report = json.loads((tmp_path / "upscaling.json").read_text())
    assert report["images"] == 2
    drawn = {upscaling.ONE, upscaling.MEAN, upscaling.NO_CAPTION, upscaling.NO_IMAGE}
    assert set(report["measures"]) == {*upscaling.FILTERS, upscaling.PROJECTED, *drawn}
    assert report["measures"][upscaling.ONE]["given"]["mean"][0] < 0.01
    assert (tmp_path / "upscaling.png").stat().st_size > 10_000
    assert "upscaled, one drawing" in capsys.readouterr().out
