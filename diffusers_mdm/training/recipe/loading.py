# SPDX-License-Identifier: Apache-2.0
"""Reading a recipe from its YAML file, in which relative paths are relative to the file."""

import dataclasses
import functools
from pathlib import Path

from ...config_reading import read_yaml
from .data import DataRecipe
from .fields import read_fields
from .model_checks import check_can_be_made
from .recipe import Recipe

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


def load_recipe(path: str | Path) -> Recipe:
    """Read and check a recipe file; relative paths in it are looked up relative to the file first.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not YAML, or a field is unknown, missing, of a wrong type or in conflict with another;
            the message names the file and the field.
    """
    path = Path(path)
    values = read_yaml(path)
    try:
        recipe = without_unseen_captions(read_fields(Recipe, values))
        check_can_be_made(recipe.model, recipe.level_configs, recipe.scheduler)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    data, images = _data_beside(path, recipe.data), recipe.images
    if images is not None:
        images = _data_beside(path, images)
    encoder = recipe.text_encoder
    if encoder is not None and encoder.pretrained is not None:
        encoder = dataclasses.replace(encoder, pretrained=_beside(path, encoder.pretrained))
    pretrained, prior, vae = recipe.pretrained, recipe.prior_preservation, recipe.vae
    if pretrained is not None:
        pretrained = dataclasses.replace(pretrained, path=_beside(path, pretrained.path))
    if prior is not None:
        prior = dataclasses.replace(prior, class_data_dir=_beside(path, prior.class_data_dir))
    if vae is not None and vae.pretrained is not None:
        vae = dataclasses.replace(vae, pretrained=_beside(path, vae.pretrained))
    return dataclasses.replace(
        recipe,
        data=data,
        images=images,
        text_encoder=encoder,
        pretrained=pretrained,
        prior_preservation=prior,
        vae=vae,
    )


def without_unseen_captions(recipe: Recipe) -> Recipe:
    """Return the recipe, with an empty caption instead of a caption column if its model takes no text."""
    if recipe.model.get("cross_attention_dim") is not None:
        return recipe

    def with_caption(data: DataRecipe) -> DataRecipe:
        return data if data.caption is not None else dataclasses.replace(data, caption="")

    images = recipe.images and with_caption(recipe.images)
    return dataclasses.replace(recipe, data=with_caption(recipe.data), images=images)


def _data_beside(recipe_path: Path, data: DataRecipe) -> DataRecipe:
    return data.relocated(functools.partial(_beside, recipe_path), functools.partial(_shards_beside, recipe_path))


def _beside(recipe_path: Path, name: str) -> str:
    local = recipe_path.parent / name
    return str(local.resolve()) if local.exists() else name


def _shards_beside(recipe_path: Path, pattern: str) -> str:
    """Resolve a tar pattern relative to the recipe, if its folder exists there; the files need not exist."""
    if "://" in pattern or Path(pattern).is_absolute():
        return pattern
    folder = recipe_path.parent / Path(pattern).parent
    return str(folder.resolve() / Path(pattern).name) if folder.is_dir() else pattern
