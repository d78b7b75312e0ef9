# SPDX-License-Identifier: Apache-2.0
"""Generated images are compared with the real ones of their captions, enlarged where they are smaller."""

import datasets
import enlargement
import pytest
import torch
from PIL import Image

from diffusers_mdm.evaluation.generate import Generation, open_folder, save_levels, write_metadata
from diffusers_mdm.evaluation.reference import make_reference, save_reference
from tests.evaluation.tiny_images import MeanColours, random_images

SIDE = 32


def as_pictures(images: torch.Tensor) -> list[Image.Image]:
    return [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]


def write_generated(folder, images: torch.Tensor, captions: list[str]):
    open_folder(folder, Generation("model", "MDMPipeline", 0, len(captions), "digest"))
    save_levels([as_pictures(images)], range(len(captions)), folder)
    write_metadata(folder / str(images.shape[-1]), captions, 0)
    return folder


def test_images_are_enlarged_as_pillow_does_it():
    images = random_images(3, 16).load(range(3))
    found = enlargement.enlarged(images, SIDE).float()
    expected = [picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS) for picture in as_pictures(images)]
    for one, picture in zip(found, expected, strict=True):
        other = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).view(SIDE, SIDE, 3).permute(2, 0, 1)
        assert (one - other.float()).abs().max() <= 1  # Pillow rounds bytes after each direction
    assert enlargement.enlarged(images, 16) is images


def test_real_detail_completes_smaller_images_up_to_their_errors():
    truth = random_images(3, SIDE).load(range(3))
    exact = enlargement.reduced(truth, 16)
    assert torch.equal(enlargement.with_real_detail(exact, truth, 16), truth)
    darker = (exact.float() - 20).clamp(0, 255).to(torch.uint8)
    whole = enlargement.with_real_detail(darker, truth, 16).float() - truth
    half = enlargement.with_real_detail(darker, truth, 16, errors=0.5).float() - truth
    inside = (truth > 20) & (exact >= 20)
    assert (whole[inside] == -20).all()
    assert (half[inside] == -10).all()
    assert torch.equal(enlargement.with_real_detail(darker, truth, 16, errors=0.0), truth)


@pytest.fixture
def args(tmp_path):
    real = random_images(60, SIDE)
    whole = real.load(range(60))
    records = {"text": list(real.captions), "image": as_pictures(whole)}
    features = datasets.Features({"text": datasets.Value("string"), "image": datasets.Image()})
    table = datasets.Dataset.from_dict(records, features=features)
    table.to_parquet(str(tmp_path / "data" / "train-00000-of-00001.parquet"))
    save_reference(make_reference(real, [MeanColours()], (SIDE,)), tmp_path / "reference")
    chosen = list(range(50))[::-1]
    captions = [real.captions[number] for number in chosen]
    same = write_generated(tmp_path / "same", whole[chosen], captions)
    small = write_generated(tmp_path / "small", enlargement.average_down(whole[chosen], 16), captions)
    words = ["--generated", str(same), str(small), "--reference", str(tmp_path / "reference"), "--side", str(SIDE)]
    words += ["--data_dir", str(tmp_path / "data"), "--real_sides", "16", "8", "--output", str(tmp_path / "out.json")]
    return enlargement.parse_args(words)


def test_real_images_are_at_distance_zero_and_smaller_ones_further_away(args):
    found = enlargement.compare(args, MeanColours())
    assert list(found) == [
        "same",
        "small",
        "small, with the real detail",
        "small, with the real detail and half of its errors",
        "real images of 16 pixels, enlarged",
        "real images of 8 pixels, enlarged",
        "real images",
    ]
    assert found["same"] == pytest.approx(found["real images"], nan_ok=True)
    assert found["same"]["distance"] == 0
    assert found["small"] == pytest.approx(found["real images of 16 pixels, enlarged"], nan_ok=True)
    # The pixels of the small images are exactly the averages of the real ones.
    assert found["small, with the real detail"] == pytest.approx(found["same"], nan_ok=True)
    assert 0 < found["small"]["distance"] < found["real images of 8 pixels, enlarged"]["distance"]
    assert enlargement.markdown_table(found).count("\n") == 8


def test_folders_with_different_captions_are_refused(args, tmp_path):
    other = write_generated(tmp_path / "other", random_images(3, SIDE).load(range(3)), ["a", "b", "c"])
    with pytest.raises(ValueError, match="different captions"):
        enlargement.compare(args_with(args, [*args.generated, other]), MeanColours())
    with pytest.raises(ValueError, match=r"such as \['a'\]"):
        enlargement.compare(args_with(args, [other]), MeanColours())


def args_with(args, generated):
    args.generated = generated
    return args
