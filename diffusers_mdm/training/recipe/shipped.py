# SPDX-License-Identifier: Apache-2.0
"""Recipes that come with the package, which commands find by name."""

from pathlib import Path

PACKAGE = Path(__file__).parents[2]
# Where the build puts them in an installed package (setup.py), and where they are in a clone.
PLACES = (PACKAGE / "training" / "recipes", PACKAGE.parent / "training" / "recipes")


def shipped_recipes() -> dict[str, Path]:
    """Return the files of the recipes by name, sorted by name; empty if the package was installed without them."""
    folder = next((place for place in PLACES if place.is_dir()), None)
    return {} if folder is None else {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def find_recipe(recipe: str | Path) -> Path:
    """Return the file of a recipe.

    Args:
        recipe: a path, or the name of a recipe that comes with the package.

    Raises:
        FileNotFoundError: there is neither; the message lists the names.
    """
    path = Path(recipe)
    if path.exists():
        return path
    known = shipped_recipes()
    # Only a plain name: a path that is wrong must not lead to another file.
    if path.parent == Path() and path.suffix in ("", ".yaml") and path.stem in known:
        return known[path.stem]
    raise FileNotFoundError(
        f"There is no recipe {recipe}: expected a YAML file, or one of the recipes of the package: {', '.join(known)}."
    )
