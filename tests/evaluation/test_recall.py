# SPDX-License-Identifier: Apache-2.0
"""Recall: which generated images and clips count as right."""

import pytest
import torch

from diffusers_mdm.evaluation.images import pool
from diffusers_mdm.evaluation.recall import (
    GROUPS,
    Gallery,
    choose_records,
    evaluate_classes,
    evaluate_clips,
    evaluate_retrieval,
    motion,
    score_records,
)
from diffusers_mdm.evaluation.retrieval import COMPARED_SIDE
from diffusers_mdm.training.commands import evaluation_command
from tests.pipelines.tiny_pipeline import make_pipeline
from tests.pipelines.tiny_tasks import NUM_CLASSES, task

SETTINGS = {"num_inference_steps": 2, "guidance_scale": 2.0}


def gallery(number: int = 6) -> Gallery:
    return Gallery(
        pixels=torch.randn(number, 3, 16, 16),
        captions=[f"emoji {record}" for record in range(number)],
        styles=[record % 2 for record in range(number)],
        labels=[f"label {record // 2}" for record in range(number)],
        holdouts=["none", "none", "none", "combination", "concept", "concept"],
    )


def generators(number: int, seed: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed + place) for place in range(number)]


def test_scores_count_images_styles_and_labels():
    scores = score_records(gallery(), records=[0, 1, 2, 3], found=[0, 3, 3, 5])
    assert (scores.num_drawn, scores.image, scores.style, scores.label) == (4, 0.25, 0.75, 0.5)


def test_an_identical_image_with_another_caption_is_right():
    images = gallery()
    images.pixels[2] = images.pixels[0]
    assert score_records(images, records=[2], found=[0]).image == 1.0


def test_records_are_chosen_by_seed_without_repetition():
    records = gallery().records_of("none")
    assert records == [0, 1, 2]
    assert sorted(choose_records(records, 10, seed=0)) == records
    many = list(range(1000))
    assert choose_records(many, 50, seed=1) == choose_records(many, 50, seed=1) != choose_records(many, 50, seed=2)
    assert len(set(choose_records(many, 50, seed=1))) == 50


def test_the_command_has_the_same_groups():
    assert tuple(GROUPS) == evaluation_command.GROUPS


def test_a_model_that_generates_the_captioned_images_scores_one():
    pipeline, images = make_pipeline(), gallery()
    drawn = pipeline(images.captions, generator=generators(6, seed=5), output_type="pt", **SETTINGS).images
    images.pixels.copy_(pool(2 * drawn - 1, COMPARED_SIDE))
    right = evaluate_retrieval(pipeline, images, num_seen=2, batch_size=2, seed=5, **SETTINGS)
    assert {group: (one.num_drawn, one.image, one.label) for group, one in right.items()} == {
        "seen": (2, 1.0, 1.0),
        "combination": (1, 1.0, 1.0),
        "concept": (2, 1.0, 1.0),
    }
    images.pixels.copy_(images.pixels.roll(1, 0))
    wrong = evaluate_retrieval(pipeline, images, seed=5, groups=["concept"], **SETTINGS)
    assert wrong["concept"].image == 0.0


def test_a_model_that_generates_the_images_of_a_class_scores_one():
    pipeline, number = task("class").make(), NUM_CLASSES - 1
    drawn = pipeline(list(range(number)), generator=generators(number, seed=5), output_type="pt", **SETTINGS).images
    images = pool(2 * drawn - 1, COMPARED_SIDE)
    right = evaluate_classes(pipeline, images, list(range(number)), num_per_class=1, seed=5, **SETTINGS)
    assert right == dict.fromkeys(range(number), 1.0)
    others = [(label + 1) % number for label in range(number)]
    wrong = evaluate_classes(pipeline, images, others, num_per_class=1, batch_size=3, seed=5, **SETTINGS)
    assert wrong == dict.fromkeys(range(number), 0.0)


def test_a_model_that_generates_the_captioned_clips_scores_one():
    pipeline, captions = task("video").make(), ["a red apple", "a cat", "two dogs"]
    drawn = pipeline(captions, generator=generators(3, seed=5), output_type="pt", **SETTINGS).frames
    clips = pool((2 * drawn - 1).flatten(0, 1), COMPARED_SIDE).unflatten(0, drawn.shape[:2])
    right = evaluate_clips(pipeline, clips, captions, [2, 0], seed=5, batch_size=1, **SETTINGS)
    assert (right.num_drawn, right.clip) == (2, 1.0)
    assert right.motion == pytest.approx(1.0, abs=1e-3)
    wrong = evaluate_clips(pipeline, clips.roll(1, 0), captions, [2, 0], seed=5, **SETTINGS)
    assert wrong.clip == 0.0


def test_motion_is_the_mean_change_from_frame_to_frame():
    ramp = torch.arange(4.0).view(1, 4, 1, 1, 1).expand(1, 4, 3, 16, 16) * 0.25
    assert motion(torch.cat([ramp, torch.zeros_like(ramp)])).tolist() == [0.25, 0.0]
