# SPDX-License-Identifier: Apache-2.0
"""What the site needs beyond the pages in this folder, for MkDocs (`hooks` in mkdocs.yml).

- The navigation is made of `_toctree.yml`, which has the form of diffusers' own.
- Pages elsewhere in the repository that these pages refer to (`REPOSITORY_PAGES`) become pages of the site, with their
  images, under their path in the repository.
- Links to other files of the repository, which a site cannot follow, keep only their text.
- The marks of code blocks (`bash long`), which are for the tests, are removed.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

import yaml
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
TOCTREE = "_toctree.yml"
IMAGES = {".png", ".jpg", ".webp"}
# Pages outside this folder, and their titles; the cards of models are found by themselves.
REPOSITORY_PAGES = {
    "benchmarks/README.md": "Benchmarks",
    "CONTRIBUTING.md": "Contributing",
    "CHANGELOG.md": "Changelog",
}
LINK = re.compile(r"(?P<image>!?)\[(?P<text>[^\]]*)\]\((?P<target>[^)\s]+)\)")
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def repository_pages() -> dict[str, str]:
    """Return the titles of the pages outside this folder that the site shows, by their path in the repository."""
    cards = sorted((ROOT / "model_cards").glob("*/README.md"))
    return REPOSITORY_PAGES | {card.relative_to(ROOT).as_posix(): card.parent.name for card in cards}


def navigation(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Convert a toctree to MkDocs' form.

    Args:
        entries: pages `{local: path without .md, title}` and groups `{title, sections}`.
    """
    made: list[dict[str, Any]] = []
    for entry in entries:
        is_group = "sections" in entry
        made.append({entry["title"]: navigation(entry["sections"]) if is_group else f"{entry['local']}.md"})
    return made


def on_config(config: Any) -> Any:
    """Set the navigation."""
    toctree = yaml.safe_load((Path(config.docs_dir) / TOCTREE).read_text(encoding="utf-8"))
    others = [{title: site_path(page)} for page, title in repository_pages().items()]
    config.nav = [*navigation(toctree), {"The repository": others}]
    return config


def site_path(page: str) -> str:
    """Return where the site shows a page of the repository; `README.md` would hide a folder's other pages."""
    return f"repository/{page.replace('README.md', 'page.md')}"


def on_files(files: Files, config: Any) -> Files:
    """Add the pages of the repository, and the images beside them."""
    for page in repository_pages():
        files.append(File.generated(config, site_path(page), abs_src_path=str(ROOT / page)))
        folder = (ROOT / page).parent
        for image in sorted(folder.rglob("*")) if folder != ROOT else ():
            if image.suffix in IMAGES:
                path = f"repository/{image.relative_to(ROOT).as_posix()}"
                files.append(File.generated(config, path, abs_src_path=str(image)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Rewrite links to what is outside the folder of the pages, and remove the marks of code blocks."""
    path = page.file.src_uri
    if path.startswith("repository/"):
        source = path.removeprefix("repository/").replace("page.md", "README.md")
        markdown = re.sub(r"\A---\n.*?\n---\n", "", markdown, flags=re.DOTALL)
    else:
        source = f"docs/{path}"
    parts, last = [], 0
    for fence in FENCE.finditer(markdown):
        # The marks of a block are for the tests; Markdown knows only the language.
        block = re.sub(r"^```(\w+)[^\n]*", r"```\1", fence.group())
        parts += [rewrite_links(markdown[last : fence.start()], path, source), block]
        last = fence.end()
    return "".join([*parts, rewrite_links(markdown[last:], path, source)])


def rewrite_links(text: str, path: str, source: str) -> str:
    """Make links of a text lead to pages of the site.

    Args:
        text: Markdown without fenced blocks.
        path: of the page on the site.
        source: of the page in the repository.
    """

    def rewritten(link: re.Match[str]) -> str:
        target, _, anchor = link["target"].partition("#")
        if "://" in target or not target:
            return link.group()
        wanted = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        shown = where_shown(wanted)
        if shown is None:
            return link["text"]
        relative = posixpath.relpath(shown, posixpath.dirname(path))
        return f"{link['image']}[{link['text']}]({relative}{'#' if anchor else ''}{anchor})"

    return LINK.sub(rewritten, text)


def where_shown(path: str) -> str | None:
    """Return where the site shows a file of the repository, None if it does not."""
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    pages = repository_pages()
    if path in pages:
        return site_path(path)
    if f"{path}/README.md" in pages:
        return site_path(f"{path}/README.md")
    folders = {page.rpartition("/")[0] for page in pages} - {""}
    is_image = Path(path).suffix in IMAGES and any(path.startswith(f"{folder}/") for folder in folders)
    return f"repository/{path}" if is_image else None
