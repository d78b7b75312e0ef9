# SPDX-License-Identifier: Apache-2.0
"""The class names of a data set."""

from ..recipe.recipe import Recipe
from .sources import open_source


def find_class_names(recipe: Recipe) -> dict[int, str]:
    """Return the class names by class number, from the label column of the training data.

    Only a `ClassLabel` column has names; other columns and shards have only numbers.

    Returns:
        The names; empty if there are none.

    Raises:
        ValueError: there are more named classes than class embeddings in the model, or the data cannot be opened.
    """
    data, embeddings = recipe.data, recipe.model.get("num_class_embeds")
    if embeddings is None or data.label_column is None:
        return {}
    names = open_source(data).class_names()
    if len(names) >= embeddings:
        raise ValueError(
            f"Column {data.label_column!r} of {', '.join(data.origin().names)} has {len(names)} classes, so "
            f"`model.num_class_embeds` must be at least {len(names) + 1} (the last one stands for no class); it is "
            f"{embeddings}."
        )
    return dict(enumerate(names))
