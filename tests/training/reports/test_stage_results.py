# SPDX-License-Identifier: Apache-2.0
from diffusers_mdm.training.reports.stage_results import final_losses, final_metrics, stage_results
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


def with_settings(step, images, stage, **settings):
    return {"step": step, "images": images, "stage": stage, "settings": settings}


def test_settings_of_an_earlier_version_have_their_new_names():
    rows = [
        with_settings(0, 0, "inner", joint_pictures=2),
        {"step": 3, "images": 12, "stage": "inner"},
        with_settings(3, 12, "inner", joint_images=2),  # resumed with this version, as it was
        {"step": 5, "images": 20, "stage": "inner"},
    ]
    (stretch,) = stage_results(STAGES[:1], rows, [])
    assert (stretch.steps, stretch.settings) == (5, {"joint_images": 2})


def test_settings_that_earlier_versions_did_not_record_make_no_difference():
    rows = [
        with_settings(0, 0, "inner", learning_rate=1e-3),
        {"step": 3, "images": 12, "stage": "inner"},
        with_settings(3, 12, "inner", learning_rate=1e-3, snr_gamma=5.0),
        {"step": 5, "images": 20, "stage": "inner"},
    ]
    (stretch,) = stage_results(STAGES[:1], rows, [])
    assert stretch.steps == 5


def test_a_stage_that_went_on_in_another_way_has_a_stretch_for_each():
    rows = [
        with_settings(0, 0, "inner", learning_rate=1e-3, images_per_step=4),
        {"step": 3, "images": 12, "stage": "inner"},
        with_settings(3, 12, "inner", learning_rate=1e-3, images_per_step=4),  # resumed as it was
        {"step": 4, "images": 16, "stage": "inner"},
        with_settings(4, 16, "inner", learning_rate=1e-4, images_per_step=8),
        {"step": 6, "images": 32, "stage": "inner"},
        with_settings(6, 32, "inner", learning_rate=5e-4, images_per_step=8),  # stopped again before its first step
        with_settings(6, 32, "inner", learning_rate=1e-4, images_per_step=8),
        {"step": 7, "images": 40, "stage": "inner"},
        with_settings(7, 40, "outer", learning_rate=2e-3, images_per_step=8),
        {"step": 8, "images": 48, "stage": "outer"},
    ]
    first, second, third, outer = stage_results(STAGES, rows, ENDS[:1])
    told = [(part.steps, part.images, part.settings["learning_rate"]) for part in (first, second, third, outer)]
    assert told == [(4, 16, 1e-3), (2, 16, 1e-4), (1, 8, 1e-4), (1, 8, 2e-3)]
    assert [part.why_ended is None for part in (first, second, third, outer)] == [True, True, False, True]


def test_a_history_that_was_lost_and_begun_anew_tells_what_it_can():
    rows = [
        with_settings(5, 20, "inner", learning_rate=1e-3),
        {"step": 6, "images": 24, "stage": "inner"},
        with_settings(6, 24, "outer", learning_rate=1e-4),
        {"step": 8, "images": 32, "stage": "outer"},
    ]
    inner, outer = stage_results(STAGES, rows, [], {"inner": {"learning_rate": 9, "seed": 3}})
    assert (inner.steps, inner.images, inner.settings) == (None, None, {"learning_rate": 1e-3, "seed": 3})
    assert (outer.steps, outer.images) == (2, 8)


def test_last_losses_are_the_last_that_were_finite():
    assert final_losses(ROWS, 3) == [(0.4, 0.3), (0.7, None), (None, None)]


def test_metrics_are_the_last_ones_of_each_side():
    rows = [
        {"step": 1, "validation_fid/8px": 9.0, "validation_loss/level_0": 1.0},
        {"step": 2, "validation_fid/16px": 7.0, "validation_fid/8px": 5.0, "validation_kid/8px": None},
    ]
    assert final_metrics(rows) == {"fid": {8: 5.0, 16: 7.0}}
    assert list(final_metrics(rows)["fid"]) == [8, 16]
