# SPDX-License-Identifier: Apache-2.0
"""Class labels by number or by name, as in diffusers' DiT pipeline."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from diffusers_mdm.pipelines.drawing.request import Request

from ...checked_values import is_whole_number

# One label or several, by number or by name; or a tensor of integers `(B,)`.
ClassLabels = int | str | list[int] | list[str] | list[int | str] | torch.Tensor
_NUM_SUGGESTIONS = 3


def normalised_id2label(id2label: Mapping[int, str] | Mapping[str, str] | None) -> dict[str, str] | None:
    """Convert the keys of `id2label` to integers, since JSON saves them as text.

    Raises:
        ValueError: a key is not an integer, or a name is not text.
    """
    if id2label is None:
        return None
    for key, name in id2label.items():
        if not str(key).isdecimal() or not isinstance(name, str):
            raise ValueError(
                f"`id2label` has the entry {key!r}: {name!r}; expected whole numbers with names, e.g. {{0: 'cat'}}."
            )
    return {str(key): id2label[key] for key in sorted(id2label, key=int)}  # type: ignore[index]


@dataclass(frozen=True)
class ClassTable:
    """The classes of a model and their names.

    Attributes:
        num_class_embeds: number of class embeddings, the last of which stands for "no class"; None without classes.
        id2label: names of classes by number, with synonyms separated by commas.
    """

    num_class_embeds: int | None
    id2label: dict[int, str]

    @property
    def null_class(self) -> int:
        """The number of the null class ("no class"): the last embedding of the model."""
        if self.num_class_embeds is None:
            raise ValueError("This model has no classes (`num_class_embeds` is None).")
        return self.num_class_embeds - 1

    @property
    def labels(self) -> dict[str, int]:
        """Class numbers by name, sorted by name; names that several classes have are omitted."""
        ids = self._ids_of_names()
        return {name: ids[name][0] for name in sorted(ids) if len(ids[name]) == 1}

    def _ids_of_names(self) -> dict[str, list[int]]:
        ids: dict[str, list[int]] = {}
        for number, names in self.id2label.items():
            for name in dict.fromkeys(part.strip() for part in names.split(",")):
                ids.setdefault(name, []).append(number)
        return ids

    def ids_of_names(self, label: str | list[str]) -> list[int]:
        """Return the numbers of classes by their names.

        Args:
            label: one name or a list of names.

        Raises:
            ValueError: no class or several classes have a name; similar names are suggested.
        """
        ids = self._ids_of_names()
        return [_id_of_name(name, ids) for name in ([label] if isinstance(label, str) else label)]

    def numbers(self, labels: ClassLabels, name: str = "class_labels") -> list[int]:
        """Convert labels of any kind to numbers.

        Args:
            labels: numbers or names.
            name: name of the argument in error messages.

        Raises:
            ValueError: a label that does not exist.
        """
        entries = labels.tolist() if isinstance(labels, (torch.Tensor, np.ndarray)) else labels
        entries = list(entries) if isinstance(entries, (list, tuple)) else [entries]
        if not entries:
            raise ValueError(f"`{name}` is an empty list; pass at least one label.")
        return [self._number(entry, name) for entry in entries]

    def _number(self, label: Any, name: str) -> int:
        if isinstance(label, str):
            return self.ids_of_names(label)[0]
        if not is_whole_number(label):
            raise ValueError(
                f"`{name}` has an entry of type {type(label).__name__}; expected whole numbers or names of classes."
            )
        if not 0 <= int(label) <= self.null_class:
            raise ValueError(
                f"`{name}` has {label}, but this model has the classes 0 to {self.null_class - 1}, and "
                f"{self.null_class} for none of them."
            )
        return int(label)

    def encode(self, request: Request, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the labels of the conditional and the unconditional half of a batch, `(B,)` each.

        Args:
            request: its labels are repeated to B; without negative labels, the null class is used.
            device: device of the labels.
        """
        labels = torch.tensor(self.numbers(request.class_labels), device=device)
        if request.negative_class_labels is None:
            negatives = torch.full_like(labels, self.null_class)
        else:
            negative_numbers = self.numbers(request.negative_class_labels, "negative_class_labels")
            negatives = torch.tensor(negative_numbers, device=device).expand(len(labels))
        copies = request.num_images // len(labels)
        return labels.repeat_interleave(copies), negatives.repeat_interleave(copies)


def _id_of_name(name: str, ids: Mapping[str, list[int]]) -> int:
    """Return the number of the class with this name."""
    if not ids:
        raise ValueError(
            f"The classes of this model have no names, so {name!r} cannot be used; pass numbers, or load the "
            f"pipeline with `id2label`."
        )
    if name not in ids:
        by_folded_name = {known.casefold(): known for known in ids}
        near = difflib.get_close_matches(name.casefold(), by_folded_name, n=_NUM_SUGGESTIONS)
        hint = (
            f"did you mean {' or '.join(repr(by_folded_name[entry]) for entry in near)}?"
            if near
            else "there is no similar name."
        )
        raise ValueError(f"No class is called {name!r}; {hint} `pipeline.labels` lists all {len(ids)} names.")
    if len(ids[name]) > 1:
        numbers = " and ".join(str(number) for number in ids[name])
        raise ValueError(f"Classes {numbers} are all called {name!r}; pass the number of the one you mean.")
    return ids[name][0]
