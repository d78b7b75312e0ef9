# SPDX-License-Identifier: Apache-2.0
from diffusers_mdm.training.reports.stage_results import final_losses, stage_results
from tests.training.tiny_run import learning_stage

STAGES = (learning_stage(name="inner"), learning_stage(name="outer"))
ROWS = [
    {"step": 2, "images": 8, "stage": "inner", "loss/level_0": 0.5, "validation_loss/level_0": 0.3},
    {"step": 5, "images": 20, "stage": "inner", "loss/level_0": 0.4},
    {"step": 7, "images": 36, "stage": "outer", "loss/level_0": None, "loss/level_1": 0.7},
]
ENDS = ["inner: the loss stopped falling: after all", "outer: all its steps were done"]


def test_stages_are_told_apart_by_what_the_history_says():
    inner, outer = stage_results(STAGES, ROWS, ENDS)
    assert (inner.steps, inner.images) == (5, 20)
    assert (outer.steps, outer.images) == (2, 16)
    assert inner.why_ended == "the loss stopped falling: after all"
    assert outer.why_ended == "all its steps were done"


def test_what_is_not_known_is_not_guessed():
    """A stage after one without a trace may have begun anywhere."""
    for result in stage_results(STAGES, ROWS[2:], []):
        assert (result.steps, result.images, result.why_ended) == (None, None, None)
    for result in stage_results((STAGES[0], STAGES[0]), ROWS, ENDS[:1] * 2):
        assert (result.steps, result.images) == (None, None)


def test_last_losses_are_the_last_that_were_finite():
    assert final_losses(ROWS, 3) == [(0.4, 0.3), (0.7, None), (None, None)]
