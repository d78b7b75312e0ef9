# SPDX-License-Identifier: Apache-2.0
"""Facts that a model card states in several places: sizes, names, and the subject."""

from pathlib import Path

from ..modules.classes import sees_text
from ..recipe.recipe import Recipe


def sides_of(recipe: Recipe, factor: int = 1) -> tuple[int, ...]:
    """Return the sides in pixels of the levels that are trained, innermost first; `factor` is pixels per latent."""
    reached = max(stage.levels for stage in recipe.stages)
    return tuple(side * factor for side in recipe.sides[:reached])


def subject_prompt(recipe: Recipe) -> str | None:
    """Return the common caption of all images if the run was trained on a subject."""
    return (recipe.data.caption or None) if sees_text(recipe) else None


def is_hub_id(name: str) -> bool:
    """Return whether a name is a Hub id rather than a folder on this machine."""
    return not Path(name).exists() and not Path(name).is_absolute() and name.count("/") <= 1 and name[:1] != "."


def public_name(name: str) -> str:
    """Return a Hub id unchanged, and of a folder only the last part of its path."""
    return name if is_hub_id(name) else Path(name).name
