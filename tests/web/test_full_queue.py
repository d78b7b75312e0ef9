# SPDX-License-Identifier: Apache-2.0
"""Who comes when the queue is full is turned away in words, at once, and can draw when there is room again."""

import pytest

from diffusers_mdm.web.limits import Limits
from diffusers_mdm.web.serving import serve
from tests.web.browser import Visitor, chromium


@pytest.fixture
def address(tiny):
    """Address of a page on which one drawing runs and one can wait."""
    page, _ = serve({"tiny": tiny}, Limits(waiting=1), prevent_thread_lock=True, quiet=True)
    yield page.local_url
    page.close(verbose=False)


@pytest.mark.slow  # three pages in a browser
def test_the_third_of_three_visitors_is_turned_away(tiny, address):
    program = chromium()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as player:
        browser = player.chromium.launch(executable_path=program, args=["--no-sandbox"])
        drawing, waiting, late = (Visitor(browser.new_context(), f"{address}?steps=2") for _ in range(3))
        with tiny.in_use:  # so that no drawing ends before the third visitor comes
            drawing.press("draw")
            drawing.wait_for_status("The drawing begins.")
            with waiting.page.expect_response("**/queue/join*") as joined:
                waiting.press("draw")
            assert joined.value.ok
            with late.page.expect_response("**/queue/join*") as joined:
                late.press("draw")
            assert joined.value.status == 503
            late.page.get_by_text("currently busy. Please try again").wait_for()
        for visitor in (drawing, waiting):
            visitor.wait_for("result")
        late.draw()
        assert late.wait_for("result") == ["Text to image, 8 px", "Text to image, 16 px"]
        browser.close()
