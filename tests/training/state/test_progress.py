# SPDX-License-Identifier: Apache-2.0
"""Counters: what a step adds, when a stage ends, and sums that cannot be."""

import pytest

from diffusers_mdm.training.state.progress import PlateauState, Progress, check_progress
from tests.training.tiny_run import learning_stage


@pytest.mark.parametrize("num_processes", [1, 3])
def test_a_step_counts_itself_and_its_images(num_processes):
    stage, progress = learning_stage(batch_size=4, gradient_accumulation_steps=2), Progress(stage_images=0)
    for _ in range(5):
        progress.count_step(stage, num_processes)
    assert (progress.stage_step, progress.total_steps) == (5, 5)
    assert progress.stage_images == progress.total_images == 5 * 8 * num_processes
    assert check_progress(progress) is progress


@pytest.mark.parametrize(
    ("fields", "last"),
    [
        ({"steps": 7}, 7),
        ({"steps": None, "images": 17}, 5),  # 4 images a step
        ({"steps": 3, "images": 17}, 3),
        ({"steps": 9, "images": 16}, 4),
    ],
)
def test_the_first_limit_ends_a_stage(fields, last):
    stage, progress = learning_stage(batch_size=4, **fields), Progress(stage_images=0)
    for _ in range(last):
        assert progress.last_step(stage) == last
        progress.count_step(stage)
    assert progress.last_step(stage) == last


def test_images_that_were_seen_count_whatever_the_steps_were_like():
    progress = Progress(stage_images=0)
    progress.count_step(learning_stage(batch_size=8))
    assert progress.last_step(learning_stage(batch_size=2, steps=None, images=14)) == 1 + 3


def test_a_finished_stage_leaves_its_numbers_and_a_clean_slate():
    stage = learning_stage(name="inner", batch_size=4)
    progress = Progress(stage_images=0, plateau=PlateauState(measurements=3))
    progress.count_step(stage)
    progress.stage_ended = "its plateau"
    progress.finish_stage(stage)
    assert progress == Progress(
        stage_index=1,
        stage_images=0,
        total_steps=1,
        total_images=4,
        stage_ends=("inner: its plateau",),
        finished_steps=(1,),
        finished_images=(4,),
    )


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"stage_step": 2, "total_steps": 1}, "total_steps"),
        ({"stage_index": 1}, "stage_ends"),
        ({"total_steps": 3, "stage_step": 3, "total_images": 2}, "total_images"),
        ({"skipped_in_a_row": 1}, "skipped_steps"),
        ({"plateau": PlateauState(best=float("nan"))}, "plateau.best"),
        ({"plateau": PlateauState(best_step=5)}, "plateau"),
    ],
)
def test_counters_that_contradict_each_other_are_refused(fields, name):
    with pytest.raises(ValueError, match=rf"progress\.{name}"):
        check_progress(Progress(**fields))
