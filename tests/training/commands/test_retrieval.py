# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import pytest
import torch

from diffusers_mdm.training.commands.retrieval import (
    COMPARED_SIDE,
    Gallery,
    choose_records,
    evaluate_classes,
    load_class_gallery,
    load_gallery,
    nearest_records,
    pool_to_side,
    score_records,
)
from tests.pipelines.tiny_tasks import NUM_CLASSES, task

ROOT = Path(__file__).parents[3]


def gallery(number: int = 6) -> Gallery:
    return Gallery(
        pixels=torch.randn(number, 3, 16, 16),
        captions=[f"emoji {record}" for record in range(number)],
        styles=[record % 2 for record in range(number)],
        labels=[f"label {record // 2}" for record in range(number)],
        holdouts=["none", "none", "none", "combination", "concept", "concept"],
    )


def test_a_noisy_copy_is_nearest_to_its_original():
    pictures = gallery()
    noisy = pictures.pixels[[4, 1, 1]] + 0.1 * torch.randn(3, 3, 16, 16)
    assert nearest_records(noisy, pictures.pixels).tolist() == [4, 1, 1]


def test_scores_count_pictures_styles_and_labels():
    scores = score_records(gallery(), records=[0, 1, 2, 3], nearest=[0, 3, 3, 5])
    assert (scores.num_drawn, scores.picture, scores.style, scores.label) == (4, 0.25, 0.75, 0.5)


def test_the_same_picture_under_another_caption_counts():
    pictures = gallery()
    pictures.pixels[2] = pictures.pixels[0]
    assert score_records(pictures, records=[2], nearest=[0]).picture == 1.0


def test_rows_are_chosen_by_seed_without_repetition():
    records = gallery().records_of("none")
    assert records == [0, 1, 2]
    assert sorted(choose_records(records, 10, seed=0)) == records
    many = list(range(1000))
    assert choose_records(many, 50, seed=1) == choose_records(many, 50, seed=1) != choose_records(many, 50, seed=2)
    assert len(set(choose_records(many, 50, seed=1))) == 50


def test_pooling_averages_down_and_refuses_odd_sides():
    assert torch.equal(pool_to_side(torch.ones(1, 3, 64, 64)), torch.ones(1, 3, 16, 16))
    with pytest.raises(ValueError, match="cannot be averaged down"):
        pool_to_side(torch.ones(1, 3, 40, 40))


def test_a_model_that_draws_the_pictures_of_a_class_scores_one():
    pipeline, number = task("class").make(), NUM_CLASSES - 1
    settings = {"num_inference_steps": 2, "guidance_scale": 2.0}
    generators = [torch.Generator().manual_seed(5 + place) for place in range(number)]
    drawn = pipeline(list(range(number)), generator=generators, output_type="pt", **settings).images
    pictures = pool_to_side(2 * drawn - 1)
    right = evaluate_classes(pipeline, pictures, list(range(number)), num_per_class=1, seed=5, **settings)
    assert right == dict.fromkeys(range(number), 1.0)
    others = [(label + 1) % number for label in range(number)]
    wrong = evaluate_classes(pipeline, pictures, others, num_per_class=1, batch_size=3, seed=5, **settings)
    assert wrong == dict.fromkeys(range(number), 0.0)


def test_a_column_that_is_not_there_is_named():
    with pytest.raises(ValueError, match=r"no column 'kind'; it has .*subgroup"):
        load_class_gallery(ROOT / "training" / "data" / "emoji-styles-64", "kind")


def test_a_data_set_of_one_split_serves_and_a_missing_column_is_named(pictures_dir):
    pixels, texts = load_class_gallery(pictures_dir, "text")
    assert (pixels.shape, len(texts)) == ((12, 3, COMPARED_SIDE, COMPARED_SIDE), 12)
    with pytest.raises(ValueError, match="has no column 'kind'; it has image, text"):
        load_class_gallery(pictures_dir, "kind")
    with pytest.raises(ValueError, match="has no column 'style'"):
        load_gallery(pictures_dir)
