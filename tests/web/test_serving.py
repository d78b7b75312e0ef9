# SPDX-License-Identifier: Apache-2.0
"""The page in a browser: one server with tiny models, and visitors who draw, stop, make mistakes, and share it."""

import os
import threading

import pytest
from PIL import Image
from playwright.sync_api import expect

from diffusers_mdm.web.limits import Limits
from diffusers_mdm.web.serving import serve
from tests.web.browser import PATIENCE, Visitor, chromium
from tests.web.gate import gate_of

MANY = 1000  # steps: all that there are


@pytest.fixture(scope="module")
def served(models):
    """The page and its handlers, on a free port of this machine."""
    page, handlers = serve(models, Limits(steps=MANY, prompt_length=40), prevent_thread_lock=True, quiet=True)
    yield page, handlers
    page.close(verbose=False)


@pytest.fixture(scope="module")
def browser(served):
    """Chromium without a window; no test needs another process of it."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as player:
        # In containers, where tests run as root, Chromium's own sandbox cannot be set up.
        program = player.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        yield program
        program.close()


@pytest.fixture
def visit(browser, served):
    """Open the page as another visitor each time, or in a second tab of the same browser."""
    contexts = []

    def open_page(query: str = "", same_computer: Visitor | None = None) -> Visitor:
        if same_computer is None:
            contexts.append(browser.new_context())
        return Visitor(contexts[-1] if same_computer is None else same_computer.context, served[0].local_url + query)

    yield open_page
    for context in contexts:
        context.close()


@pytest.fixture
def gate(tiny):
    """Lets the steps of drawings with the model of texts through when the test says so."""
    with gate_of(tiny) as gate:
        yield gate


def drawing_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "drawing"]


def wait_until_nothing_draws() -> bool:
    for thread in drawing_threads():
        thread.join(PATIENCE / 1000)
    return not drawing_threads()


def test_only_this_machine_can_connect_and_nothing_is_reported(served):
    page, _ = served
    assert page.local_url.startswith("http://127.0.0.1:")
    assert page.share_url is None
    assert not page.analytics_enabled
    assert os.environ["GRADIO_ANALYTICS_ENABLED"] == "False"
    assert os.environ["HF_HUB_DISABLE_TELEMETRY"] in ("1", "True")


def test_a_prompt_is_drawn_and_every_level_changes_on_the_way(visit, served, gate):
    visitor = visit()
    visitor.write("prompt", "a red apple")
    visitor.write("steps", "6")
    gate.close_after(1)
    visitor.draw()
    for step in range(1, 6):
        visitor.wait_for_status(f"Step {step} of 6")
        gate.let_through()
    assert visitor.wait_for("result") == ["a red apple, 8 px", "a red apple, 16 px"]
    assert visitor.sides() == [8, 16]
    previews = visitor.previews()
    for level in (0, 1):
        assert len({shown[level] for shown in previews}) > 2
    gate.open()
    seed = visitor.read("seed")
    assert visitor.wait_for_status("Done") == f"Done, with seed {seed}."

    with visitor.page.expect_download() as download:
        visitor.page.locator(".mdm-download").last.click()
    with Image.open(download.value.path()) as image:
        assert image.size == (16, 16)
        assert f"seed={seed}" in image.text["diffusers_mdm settings"]

    visitor.page.wait_for_url(f"**seed={seed}**")
    link = visitor.read("link")
    assert link == visitor.page.url
    again = visit("?" + link.partition("?")[2], same_computer=visitor)
    assert (again.read("prompt"), again.read("seed"), again.read("steps")) == ("a red apple", seed, "6")
    again.draw()
    again.wait_for("result")
    # The same settings draw the same images.
    shown = "images => images.map(image => image.src)"
    assert again.page.eval_on_selector_all(".mdm-levels img", shown) == visitor.page.eval_on_selector_all(
        ".mdm-levels img", shown
    )
    own = served[0].local_url
    foreign = [url for url in visitor.requests + again.requests if not url.startswith((own, "data:", "blob:"))]
    assert not foreign


def test_stop_and_closing_the_page_end_a_drawing_and_another_can_begin(visit, gate):
    visitor = visit()
    visitor.write("prompt", "the cat")
    visitor.write("steps", "9")
    gate.close_after(2)
    visitor.draw()
    visitor.wait_for("preview")
    assert drawing_threads()
    visitor.press("stop")
    visitor.wait_for_status("Stopped")
    gate.open()
    assert wait_until_nothing_draws()
    # The step that had begun was finished, and no other one.
    assert gate.steps <= 3
    visitor.write("steps", "3")
    visitor.draw()
    assert visitor.wait_for("result")[0] == "the cat, 8 px"

    # Closing the page ends a drawing, too.
    visitor.write("steps", str(MANY))
    gate.close_after(2)
    visitor.draw()
    visitor.wait_for("preview")
    (drawing,) = drawing_threads()
    visitor.page.close()
    # One step at a time until the server has noticed.
    while drawing.is_alive() and gate.steps < MANY - 1:
        gate.let_through()
        drawing.join(0.2)
    assert not drawing.is_alive()
    assert gate.steps < MANY - 1


def test_mistakes_are_sentences_and_do_no_harm(visit, tmp_path):
    visitor = visit()
    for field, wrong, right, message in (
        ("steps", "1001", "3", "The number of steps is 1001; it has to be a whole number from 1 to 1000."),
        ("steps", "", "3", "The number of steps is missing"),
        ("prompt", "a" * 41, "a dog", "The prompt has 41 characters; this page takes 40."),
        ("guidance_1", "99", "2", "The guidance is 99"),
        ("images", "0", "1", "The number of images is 0"),
    ):  # fmt: skip
        visitor.write(field, wrong)
        visitor.press("draw")
        assert visitor.wait_for_status(message).startswith("The ")
        visitor.write(field, right)
    visitor.draw()
    assert visitor.wait_for("result") == ["a dog, 8 px", "a dog, 16 px"]

    visitor.open_tab("Upscale")
    visitor.press("draw")
    visitor.wait_for_status("Upload an image first")
    photo = tmp_path / "photo.png"
    photo.write_text("not an image")
    visitor.upload("upscale_image", photo)
    visitor.page.locator("#upscale_image img").wait_for(state="attached")
    visitor.press("draw")
    visitor.wait_for_status("not an image")
    visitor.page.get_by_label("Remove Image").or_(visitor.page.get_by_label("Clear")).first.click()
    Image.new("RGB", (30, 30), "green").save(photo)
    visitor.upload("upscale_image", photo)
    visitor.page.locator("#upscale_image img").wait_for()
    visitor.draw()
    visitor.wait_for("result")
    assert visitor.sides() == [8, 16]


def test_two_visitors_at_once_get_their_own_images(visit, gate):
    one, two = visit(), visit("?task=classes&label=house&steps=3")
    one.write("prompt", "a sad cat")
    one.write("steps", "9")
    gate.close_after(2)
    one.draw()
    one.wait_for("preview")
    with two.page.expect_response("**/queue/join*"):
        two.draw()
    # One drawing at a time: the second waits, and its visitor's "Stop" would not end the first.
    two.page.wait_for_timeout(500)
    assert "Step" in one.status()
    assert len(drawing_threads()) == 1
    assert not two.page.locator(".mdm-levels img").count()
    one.press("stop")
    one.wait_for_status("Stopped")
    gate.open()
    assert two.wait_for("result") == ["house, 8 px", "house, 16 px"]
    one.wait_for_status("Stopped")
    two.page.locator("#history img").wait_for()
    assert not one.page.locator("#history img").count()
    assert two.page.locator("#history img").count() == 1


def test_clips_and_edits_have_tabs_of_their_own(visit, tmp_path):
    visitor = visit()
    visitor.open_tab("Clips")
    visitor.page.get_by_label("8 px, 4 frames").wait_for()
    visitor.write("prompt", "a dog")
    visitor.write("steps", "2")
    visitor.draw()
    assert visitor.wait_for("result") == [
        f"a dog, {name}" for name in ("8 px, 1 frame", "8 px, 4 frames", "16 px, 4 frames")
    ]

    visitor.open_tab("Edit")
    visitor.page.get_by_label("8 px", exact=True).wait_for()
    photo = tmp_path / "photo.png"
    Image.new("RGB", (32, 32), "green").save(photo)
    undo = visitor.page.locator("#edit_image").get_by_role("button", name="Undo")
    expect(undo).to_be_disabled(timeout=PATIENCE)
    visitor.upload("edit_image", photo)
    expect(undo).to_be_enabled(timeout=PATIENCE)  # when the editor has the image
    visitor.write("steps", "4")
    visitor.draw()
    visitor.wait_for("result")
    assert visitor.sides() == [8, 16]
