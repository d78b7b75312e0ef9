# SPDX-License-Identifier: Apache-2.0
"""A page of the demo in headless Chromium, driven as a visitor would."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "chrome")
PATIENCE = 300_000  # milliseconds; busy machines are slow
# Notes every preview that the page shows.
_NOTE_PREVIEWS = """() => {
    window.previews = [];
    new MutationObserver(() => {
        const levels = document.querySelector(".mdm-levels");
        if (!levels || levels.dataset.state !== "preview") return;
        const shown = [...levels.querySelectorAll("img")].map((image) => image.src);
        if (shown.length) window.previews.push(shown);
    }).observe(document.querySelector("#levels"), {childList: true, subtree: true, attributes: true});
}"""


def chromium() -> str:
    """Path of Chromium; without it the test is skipped."""
    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, PROGRAMS)), None)
    if found is None:
        pytest.skip("Chromium is missing: `apt-get install chromium`, or set CHROMIUM to the path of the program.")
    return found


class Visitor:
    """Somebody with an open page.

    Args:
        context: of the browser; each has its own storage, as on another computer.
        address: of the page.
    """

    def __init__(self, context: Any, address: str) -> None:
        self.context = context
        self.page = context.new_page()
        self.page.set_default_timeout(PATIENCE)
        self.requests: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(address)
        self.wait_for_status(".")
        self.page.evaluate(_NOTE_PREVIEWS)

    def write(self, field: str, text: str) -> None:
        """Replace the text or number in a field."""
        self.page.locator(f"#{field} textarea, #{field} input").first.fill(text)

    def read(self, field: str) -> str:
        """Return the text or number in a field."""
        return self.page.locator(f"#{field} textarea, #{field} input").first.input_value()

    def press(self, button: str) -> None:
        """Press a button."""
        self.page.locator(f"#{button}").click()

    def draw(self) -> None:
        """Press "Draw"; what was drawn before does not count as a result any more."""
        self.page.evaluate("document.querySelector('.mdm-levels')?.setAttribute('data-state', 'old')")
        self.press("draw")

    def open_tab(self, title: str) -> None:
        """Open a tab."""
        self.page.get_by_role("tab", name=title, exact=True).click()

    def upload(self, field: str, path: Path) -> None:
        """Choose a file for an image field."""
        self.page.locator(f"#{field} input[type=file]").first.set_input_files(str(path))

    def status(self) -> str:
        """Return the line that says what is going on."""
        return self.page.locator("#status .mdm-status").inner_text()

    def wait_for_status(self, text: str) -> str:
        """Wait until that line contains a text, and return it."""
        self.page.locator("#status .mdm-status", has_text=text).wait_for()
        return self.status()

    def wait_for(self, state: str) -> list[str]:
        """Wait until levels are shown as "preview" or "result"; return the descriptions of their images."""
        self.page.locator(f".mdm-levels[data-state={state}] img").first.wait_for()
        return self.page.eval_on_selector_all(".mdm-levels img", "images => images.map(image => image.alt)")

    def sides(self) -> list[int]:
        """Return the widths in pixels of the shown images."""
        return self.page.eval_on_selector_all(".mdm-levels img", "images => images.map(image => image.naturalWidth)")

    def previews(self) -> list[list[str]]:
        """Return the images of all previews that were shown, as addresses that contain them."""
        return self.page.evaluate("window.previews")
