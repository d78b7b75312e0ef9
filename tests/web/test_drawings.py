# SPDX-License-Identifier: Apache-2.0
"""Drawings report every level at every step, are those of the pipelines, and end when they are stopped."""

import dataclasses
import threading

import numpy as np
import pytest
import torch
from PIL import Image

from diffusers_mdm.web.drawings import GivenImage, draw
from diffusers_mdm.web.settings import SOLVERS, Settings

TEXT = Settings(task="text", model="tiny", prompt="a red apple", level=1, steps=4, guidance=(3.0, 2.0), seed=5)
CLASS = dataclasses.replace(TEXT, task="classes", model="kinds", prompt="", label="dog")
CLIP = dataclasses.replace(TEXT, task="clips", model="moving", level=2, guidance=(3.0,) * 3, steps=2)
GRADIENT = Image.fromarray(np.linspace(0, 255, 24 * 24 * 3).reshape(24, 24, 3).astype("uint8"))


def run(models, settings, given=None):
    return list(draw(models[settings.model], settings, threading.Event(), given))


def as_array(image):
    return np.asarray(image).astype(int)


def test_every_level_is_reported_and_the_result_is_that_of_the_pipeline(models):
    reports = run(models, dataclasses.replace(TEXT, images=2))
    assert reports[-1].is_finished
    assert all(not report.is_finished for report in reports[:-1])
    assert [report.step for report in reports[:-1]] == sorted({report.step for report in reports[:-1]})
    for report in reports:
        assert [[image[0].size for image in level] for level in report.levels] == [[(8, 8)] * 2, [(16, 16)] * 2]
    generators = [torch.Generator().manual_seed(seed) for seed in (5, 6)]
    expected = models["tiny"].pipeline(
        ["a red apple"] * 2, num_inference_steps=4, guidance_scale=[3.0, 2.0], generator=generators
    )
    for drawn, image in zip(reports[-1].levels[1], expected.images, strict=True):
        # 8-bit images of the same computation, rounded once.
        assert abs(as_array(drawn[0]) - as_array(image)).max() <= 1


def test_an_image_does_not_depend_on_the_others(models):
    alone = run(models, dataclasses.replace(TEXT, seed=6))[-1].levels[1][0][0]
    second = run(models, dataclasses.replace(TEXT, images=2))[-1].levels[1][1][0]
    assert abs(as_array(alone) - as_array(second)).max() <= 1


@pytest.mark.parametrize(
    ("settings", "sizes"),
    [
        (dataclasses.replace(TEXT, level=0, guidance=(2.0,)), [8]),
        (CLASS, [8, 16]),
        (dataclasses.replace(CLASS, label="2"), [8, 16]),
        (dataclasses.replace(TEXT, task="plain", model="free"), [8, 16]),
        (dataclasses.replace(TEXT, task="plain", model="free", level=0, images=2), [8]),
    ],
)
def test_levels_up_to_the_chosen_one(models, settings, sizes):
    assert [level[0][0].width for level in run(models, settings)[-1].levels] == sizes


@pytest.mark.parametrize("solver", SOLVERS)
def test_every_solver_draws(models, solver):
    assert run(models, dataclasses.replace(TEXT, solver=solver))[-1].is_finished


def test_clips_have_frames(models):
    reports = run(models, CLIP)
    for report in reports:
        assert [len(level[0]) for level in report.levels] == [1, 4, 4]
    shorter = run(models, dataclasses.replace(CLIP, level=1, guidance=(1.0, 1.0)))[-1]
    assert [len(level[0]) for level in shorter.levels] == [1, 4]


def test_upscaled_images_are_drawn_around_the_given_one(models):
    settings = dataclasses.replace(TEXT, task="upscale", images=2)
    levels = run(models, settings, GivenImage(GRADIENT))[-1].levels
    assert [level[0][0].size for level in levels] == [(8, 8), (16, 16)]
    small = GRADIENT.resize((8, 8), Image.Resampling.BOX)
    assert abs(as_array(levels[0][0][0]) - as_array(small)).max() <= 1


@pytest.mark.parametrize(
    ("model", "task", "sizes"), [("cascade", "upscale", [16]), ("free", "upscale", [8, 16]), ("free", "edit", [8, 16])]
)
def test_models_of_every_kind_take_images(models, model, task, sizes):
    level = max(models[model].levels(task))
    settings = dataclasses.replace(TEXT, task=task, model=model, level=level, guidance=(2.0,) * (level + 1), images=2)
    levels = run(models, settings, GivenImage(GRADIENT))[-1].levels
    assert [[image[0].width for image in level] for level in levels] == [[size] * 2 for size in sizes]


def test_edits_keep_what_is_not_painted(models):
    settings = dataclasses.replace(TEXT, task="edit", strength=1.0)
    mask = Image.new("L", (24, 24))
    mask.paste(255, (12, 0, 24, 24))
    drawn = as_array(run(models, settings, GivenImage(GRADIENT, mask))[-1].levels[1][0][0])
    kept = as_array(GRADIENT.resize((16, 16), Image.Resampling.LANCZOS))
    assert abs(drawn[:, :8] - kept[:, :8]).max() <= 1
    assert abs(drawn[:, 8:] - kept[:, 8:]).max() > 8


@pytest.mark.parametrize(("level", "size"), [(0, (8, 8)), (1, (16, 16))])
def test_edits_are_drawn_at_the_chosen_level(models, level, size):
    settings = dataclasses.replace(TEXT, task="edit", level=level, guidance=(2.0,) * (level + 1), strength=0.0)
    result = run(models, settings, GivenImage(GRADIENT))[-1].levels[-1][0][0]
    assert result.size == size
    assert abs(as_array(result) - as_array(GRADIENT.resize(size, Image.Resampling.LANCZOS))).max() <= 1


def test_images_that_are_not_square_keep_their_shape(models):
    wide = GRADIENT.resize((24, 12))
    settings = dataclasses.replace(TEXT, task="edit", strength=0.5)
    assert run(models, settings, GivenImage(wide))[-1].levels[-1][0][0].size == (16, 8)


def test_a_stopped_drawing_really_ends(models):
    stop, seen = threading.Event(), []
    settings = dataclasses.replace(TEXT, steps=1000)
    for report in draw(models["tiny"], settings, stop):
        seen.append(report)
        stop.set()
    assert len(seen) == 1
    assert not seen[0].is_finished
    assert seen[0].step < 100
    assert models["tiny"].pipeline_for("text").interrupt
    assert not any(thread.name == "drawing" for thread in threading.enumerate())


def test_a_drawing_that_nobody_watches_ends(models):
    reports = draw(models["tiny"], dataclasses.replace(TEXT, steps=1000), threading.Event())
    next(reports)
    reports.close()
    assert not any(thread.name == "drawing" for thread in threading.enumerate())


def test_a_drawing_that_is_stopped_before_it_begins_computes_nothing(models):
    stop = threading.Event()
    stop.set()
    assert list(draw(models["tiny"], TEXT, stop)) == []


def test_mistakes_reach_the_caller(models):
    with pytest.raises(ValueError, match="strength"):
        run(models, dataclasses.replace(TEXT, task="edit", strength=7.0), GivenImage(GRADIENT))


def test_drawings_of_one_model_wait_for_each_other(models):
    results = {}

    def one(name, prompt):
        results[name] = run(models, dataclasses.replace(TEXT, prompt=prompt, steps=6))[-1]

    threads = [threading.Thread(target=one, args=(name, f"a {name}")) for name in ("cat", "dog")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name, result in results.items():
        alone = run(models, dataclasses.replace(TEXT, prompt=f"a {name}", steps=6))[-1]
        assert abs(as_array(result.levels[1][0][0]) - as_array(alone.levels[1][0][0])).max() <= 1


def test_previews_of_a_slow_watcher_are_skipped(models):
    reports = draw(models["tiny"], dataclasses.replace(TEXT, steps=30), threading.Event())
    steps = []
    for report in reports:
        steps.append(report.step)
        if len(steps) == 1:
            # The watcher looks again when the drawing has ended.
            (drawing,) = [thread for thread in threading.enumerate() if thread.name == "drawing"]
            drawing.join()
    assert steps[-1] == 30
    assert len(steps) <= 3
