# SPDX-License-Identifier: Apache-2.0
"""What a model card says in several places: sizes, names, and what the model has learnt."""

from pathlib import Path

from ..modules.classes import sees_text
from ..recipe.recipe import Recipe


def sides_of(recipe: Recipe, factor: int = 1) -> tuple[int, ...]:
    """Sides in pixels of the levels that the stages reach, innermost first; `factor` pixels for one latent."""
    reached = max(stage.levels for stage in recipe.stages)
    return tuple(side * factor for side in recipe.sides[:reached])


def subject_prompt(recipe: Recipe) -> str | None:
    """The one caption of all pictures, where a subject was learnt."""
    return (recipe.data.caption or None) if sees_text(recipe) else None


def is_hub_id(name: str) -> bool:
    """Whether a name is that of a repository rather than a folder on this machine."""
    return not Path(name).exists() and not Path(name).is_absolute() and name.count("/") <= 1 and name[:1] != "."


def public_name(name: str) -> str:
    """An id of the Hub as it is, a folder by its name alone."""
    return name if is_hub_id(name) else Path(name).name
