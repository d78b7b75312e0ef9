# SPDX-License-Identifier: Apache-2.0
"""What the page shows after each event, without a browser: two visitors, stopping, errors, links, history."""

import dataclasses
import threading
from types import SimpleNamespace

import pytest

from diffusers_mdm.web.limits import Limits
from diffusers_mdm.web.page import build_page
from diffusers_mdm.web.permalinks import from_query


@pytest.fixture(scope="module")
def handlers(models):
    return build_page(models, Limits(steps=1000, history=2))[1]


@pytest.fixture
def values(handlers):
    form = handlers.form
    given = {
        form.task: "text",
        form.model: "tiny",
        form.prompt: "a cat",
        form.negative_prompt: "",
        form.label: None,
        form.upscale_image: None,
        form.edit_image: None,
        form.strength: 0.8,
        form.level: 1,
        form.steps: 3,
        form.solver: "as saved",
        form.images: 1,
        form.seed: 4,
        form.new_seed: False,
        handlers.shown.history: [],
    }
    return {**given, **dict.fromkeys(form.guidance, 2.0)}


def page(name):
    return SimpleNamespace(session_hash=name)


def by_name(form, updates):
    """The updates by the names of the fields."""
    return {
        name: updates[field] for name, field in vars(form).items() if not isinstance(field, list) and field in updates
    }


def test_a_drawing_shows_previews_then_the_result(handlers, values):
    shown = handlers.shown
    first, *previews, last = handlers.draw(values, page("one"))
    assert "begins" in first[shown.status]
    assert previews
    for update in previews:
        assert "Step" in update[shown.status]
        assert update[shown.levels].count("<img") == 2
    assert "Done, with seed 4" in last[shown.status]
    assert last[shown.levels].count("download=") == 2
    assert from_query(last[shown.query])["seed"] == 4
    assert len(last[shown.history]) == 1
    assert len(handlers.sessions) == 0


def test_new_seeds_are_chosen_and_reported(handlers, values):
    values[handlers.form.new_seed] = True
    seeds = {next(iter(handlers.draw(values, page("one"))))[handlers.form.seed] for _ in range(4)}
    assert len(seeds - {4}) > 1


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("steps", 1001, "1 to 1000"),
        ("prompt", "a" * 501, "501 characters"),
        ("model", "nothing", "no model"),
        ("task", "upscale", "Upload an image first"),
        ("task", "edit", "Upload an image first"),
        ("level", None, "no level"),
    ],
)
def test_bad_input_is_an_error_in_words(handlers, values, field, value, message):
    values[getattr(handlers.form, field)] = value
    (update,) = handlers.draw(values, page("one"))
    assert message in update[handlers.shown.status]
    assert 'role="alert"' in update[handlers.shown.status]
    assert set(update) == {handlers.shown.status}


def test_stopping_ends_the_own_drawing_only(handlers, values):
    values[handlers.form.steps] = 1000
    drawing = handlers.draw(values, page("one"))
    next(drawing), next(drawing)
    assert "no drawing" in handlers.stop(page("two"))[handlers.shown.status]
    assert "Step" in next(drawing)[handlers.shown.status]
    assert "Stopped" in handlers.stop(page("one"))[handlers.shown.status]
    *_, last = drawing
    assert "Stopped" in last[handlers.shown.status]
    assert handlers.shown.history not in last


def test_closing_the_page_ends_its_drawing(handlers, values):
    values[handlers.form.steps] = 1000
    drawing = handlers.draw(values, page("one"))
    next(drawing), next(drawing)
    handlers.close_page(page("one"))
    *_, last = drawing
    assert "Stopped" in last[handlers.shown.status]
    assert not any(thread.name == "drawing" for thread in threading.enumerate())


def test_two_visitors_get_their_own_images_and_history(handlers, values):
    other = {**values, handlers.form.prompt: "a dog", handlers.shown.history: []}
    results = {}

    def visit(name, fields):
        *_, results[name] = handlers.draw(fields, page(name))

    threads = [threading.Thread(target=visit, args=args) for args in (("one", values), ("two", other))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name, prompt in (("one", "a cat"), ("two", "a dog")):
        history = results[name][handlers.shown.history]
        assert [drawn.settings.prompt for drawn in history] == [prompt]
        assert f'alt="{prompt}' in results[name][handlers.shown.levels]
    assert results["one"][handlers.shown.levels] != results["two"][handlers.shown.levels]


def test_the_history_is_limited_and_can_be_reopened(handlers, values):
    shown = handlers.shown
    for seed in (1, 2, 3):
        values[handlers.form.seed] = seed
        *_, last = handlers.draw(values, page("one"))
        values[shown.history] = last[shown.history]
    assert [drawn.settings.seed for drawn in values[shown.history]] == [3, 2]
    again = handlers.reopen(values, SimpleNamespace(index=1))
    fields = by_name(handlers.form, again)
    assert fields["seed"]["value"] == 2
    assert fields["new_seed"]["value"] is False
    assert fields["prompt"]["value"] == "a cat"
    assert "seed=2" in again[shown.query]


def test_an_address_fills_the_fields(handlers):
    opened = handlers.open_page("task=classes&label=dog&seed=9&guidance=3,4&steps=7&level=0")
    fields = by_name(handlers.form, opened)
    assert fields["task"] == "classes"
    assert fields["tabs"]["selected"] == "classes"
    assert fields["model"]["value"] == "kinds"
    assert fields["label"]["value"] == "dog"
    assert (fields["seed"]["value"], fields["steps"]["value"], fields["level"]["value"]) == (9, 7, 0)
    scales = [opened[slider] for slider in handlers.form.guidance]
    assert [scale["value"] for scale in scales] == [3.0, 4.0, 4.0]
    assert [scale["visible"] for scale in scales] == [True, False, False]


@pytest.mark.parametrize(
    ("query", "message"), [("seed=x", "not a number"), ("task=dance", "no model"), ("model=gone", "which is not here")]
)
def test_an_address_that_does_not_fit_is_explained(handlers, query, message):
    opened = handlers.open_page(query)
    assert message in opened[handlers.shown.status]
    assert by_name(handlers.form, opened)["model"]["value"] == "tiny"


def test_tabs_select_a_model_that_can_do_the_task(handlers, values):
    fields = by_name(handlers.form, handlers.select_task("clips", values))
    assert fields["model"]["value"] == "moving"
    assert fields["model"]["choices"] == ["moving"]
    assert fields["prompt"]["visible"]
    assert not fields["label"]["visible"]
    fields = by_name(handlers.form, handlers.select_task("classes", values))
    assert fields["model"]["value"] == "kinds"
    assert not fields["prompt"]["visible"]
    assert fields["label"]["value"] == "cat"


def test_models_without_conditions_have_no_fields_for_them(handlers, values):
    updates = handlers.select_task("plain", values)
    fields = by_name(handlers.form, updates)
    assert fields["model"]["value"] == "free"
    assert not fields["prompt"]["visible"]
    assert not fields["label"]["visible"]
    assert not any(updates[field]["visible"] for field in handlers.form.guidance)


def test_selecting_the_shown_tab_again_changes_nothing(handlers, values):
    assert handlers.select_task("text", values) == {handlers.form.task: "text"}


def test_another_model_brings_its_own_choices(handlers, values):
    form = handlers.form
    updates = handlers.select_model({**values, form.task: "upscale", form.model: "kinds"})
    fields = by_name(form, updates)
    assert fields["label"]["visible"]
    assert not fields["prompt"]["visible"]
    assert fields["level"]["choices"] == [("16 px", 1)]
    assert fields["model"]["choices"] == ["tiny", "kinds", "free", "cascade"]


def test_guidance_fields_follow_the_level(handlers, values):
    updates = handlers.select_level({**values, handlers.form.level: 0})
    assert [updates[field]["visible"] for field in handlers.form.guidance] == [True, False, False]


def test_settings_hold_what_was_checked(handlers, values):
    model, settings, given = handlers.read(values)
    assert (model.name, given) == ("tiny", None)
    assert dataclasses.replace(settings, guidance=()).steps == 3
