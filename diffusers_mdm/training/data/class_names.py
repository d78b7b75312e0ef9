# SPDX-License-Identifier: Apache-2.0
"""What the data set of a run calls its classes."""

from ..recipe.recipe import Recipe
from .sources import open_source


def find_class_names(recipe: Recipe) -> dict[int, str]:
    """Names of the classes by number, as the label column of the training data gives them.

    Only a `ClassLabel` column has names; those of other columns and of shards are numbers alone.

    Returns:
        Names, empty where there are none.

    Raises:
        ValueError: there are more named classes than the model has embeddings for, or the data cannot be opened.
    """
    data, embeddings = recipe.data, recipe.model.get("num_class_embeds")
    if embeddings is None or data.label_column is None:
        return {}
    names = open_source(data).class_names()
    if len(names) >= embeddings:
        raise ValueError(
            f"Column {data.label_column!r} of {', '.join(data.origin().names)} has {len(names)} classes, for which "
            f"`model.num_class_embeds` must be at least {len(names) + 1} (the last one stands for no class); "
            f"it is {embeddings}."
        )
    return dict(enumerate(names))
