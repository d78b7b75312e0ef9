# SPDX-License-Identifier: Apache-2.0
"""The documentation hangs together: every page is in the navigation, and every link and image leads somewhere.

`make docs` checks the same on the built site; here nothing but the standard library and PyYAML is needed.
"""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "training" / "README.md",
    ROOT / "benchmarks" / "README.md",
    *sorted((ROOT / "model_cards").glob("*/README.md")),
    *sorted(DOCS.rglob("*.md")),
]
MAX_IMAGE_BYTES = 200 * 1024


def page_name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def without_code(page: Path) -> str:
    text = page.read_text(encoding="utf-8")
    text = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"`[^`]*`", lambda code: code.group() if "](" not in code.group() else "", text)


def links_of(page: Path) -> list[str]:
    """Targets of the links and images of a page, without those on the web."""
    targets = re.findall(r"\]\(([^)\s]+)\)", without_code(page))
    return [target for target in targets if "://" not in target]


def anchors_of(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and MkDocs make them."""
    headings = re.findall(r"^#+ (.*)$", without_code(page), re.MULTILINE)
    return {re.sub(r"\s+", "-", re.sub(r"[^\w\s-]", "", heading.lower()).strip()) for heading in headings}


def toctree_pages(entries: list[dict]) -> list[str]:
    found = []
    for entry in entries:
        assert set(entry) in ({"title", "sections"}, {"title", "local"}), entry
        found += toctree_pages(entry["sections"]) if "sections" in entry else [entry["local"]]
    return found


def test_every_page_is_in_the_navigation_once():
    listed = toctree_pages(yaml.safe_load((DOCS / "_toctree.yml").read_text(encoding="utf-8")))
    assert len(listed) == len(set(listed))
    assert set(listed) == {path.relative_to(DOCS).with_suffix("").as_posix() for path in DOCS.rglob("*.md")}


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_links_lead_somewhere(page):
    for target in links_of(page):
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), f"{page_name(page)} links to {target}"
        assert linked.is_relative_to(ROOT), f"{page_name(page)} links out of the repository: {target}"
        if anchor:
            assert anchor in anchors_of(linked), f"{page_name(page)} links to {target}: no such heading"


def test_every_page_has_one_title_and_is_linked_from_another():
    linked = {(page.parent / target.partition("#")[0]).resolve() for page in PAGES for target in links_of(page)}
    for page in DOCS.rglob("*.md"):
        assert len(re.findall(r"^# ", without_code(page), re.MULTILINE)) == 1, page_name(page)
        assert page.resolve() in linked, f"no page links to {page_name(page)}"


def test_images_are_small_and_used():
    used = {(page.parent / target).resolve() for page in PAGES for target in links_of(page)}
    for path in (DOCS / "images").glob("*"):
        assert path.stat().st_size <= MAX_IMAGE_BYTES, path.name
        assert path.resolve() in used, f"no page shows {path.name}"


@pytest.mark.slow
def test_the_site_can_be_built(tmp_path):
    pytest.importorskip("mkdocs", reason="`make docs` installs what builds the site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "site" / "index.html").is_file()
