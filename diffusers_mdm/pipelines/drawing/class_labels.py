# SPDX-License-Identifier: Apache-2.0
"""Class labels, by number or by name, in the manner of the host's DiT pipeline."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

import torch

from diffusers_mdm.models import NestedUNetModel

# One label or several, by number or by name; or whole numbers `(B,)`.
ClassLabels = int | str | list[int] | list[str] | list[int | str] | torch.Tensor
_NUM_SUGGESTIONS = 3


def normalised_id2label(id2label: Mapping[int, str] | Mapping[str, str] | None) -> dict[str, str] | None:
    """Names by number as they are saved: JSON has text keys only.

    Raises:
        ValueError: a key is no whole number, or a name no text.
    """
    if id2label is None:
        return None
    for key, name in id2label.items():
        if not str(key).isdecimal() or not isinstance(name, str):
            raise ValueError(
                f"`id2label` has the entry {key!r}: {name!r}; expected whole numbers with names, e.g. {{0: 'cat'}}."
            )
    return {str(key): id2label[key] for key in sorted(id2label, key=int)}  # type: ignore[index]


class ClassLabelMixin:
    """Which classes a pipeline's model draws, and what they are called."""

    unet: NestedUNetModel
    config: Any

    @property
    def id2label(self) -> dict[int, str]:
        """Name of each class by its number, synonyms separated by commas. Empty where the classes have no names."""
        return {int(key): name for key, name in (self.config.get("id2label") or {}).items()}

    @property
    def labels(self) -> dict[str, int]:
        """Number of each class by its name, sorted by name; a name that several classes bear is left out."""
        ids = self._ids_of_names()
        return {name: ids[name][0] for name in sorted(ids) if len(ids[name]) == 1}

    @property
    def null_class(self) -> int:
        """The number that stands for no class: the last embedding of the model."""
        if self.unet.config.num_class_embeds is None:
            raise ValueError("This model has no classes (`num_class_embeds` is None).")
        return self.unet.config.num_class_embeds - 1

    def _ids_of_names(self) -> dict[str, list[int]]:
        ids: dict[str, list[int]] = {}
        for number, names in self.id2label.items():
            for name in dict.fromkeys(part.strip() for part in names.split(",")):
                ids.setdefault(name, []).append(number)
        return ids

    def get_label_ids(self, label: str | list[str]) -> list[int]:
        """Give the numbers of classes by their names.

        Args:
            label: one name or a list of them.

        Raises:
            ValueError: a name that no class or several classes bear; the nearest names are suggested.
        """
        ids = self._ids_of_names()
        return [_id_of_name(name, ids) for name in ([label] if isinstance(label, str) else label)]

    def resolve_class_labels(self, labels: ClassLabels, name: str = "class_labels") -> list[int]:
        """Give labels of any kind as numbers.

        Args:
            labels: numbers or names.
            name: what the error message calls them.

        Raises:
            ValueError: a label that does not exist.
        """
        entries = labels.tolist() if isinstance(labels, torch.Tensor) else labels
        entries = list(entries) if isinstance(entries, (list, tuple)) else [entries]
        if not entries:
            raise ValueError(f"`{name}` is an empty list; pass at least one label.")
        return [self._id_of_label(entry, name) for entry in entries]

    def _id_of_label(self, label: Any, name: str) -> int:
        if isinstance(label, str):
            return self.get_label_ids(label)[0]
        if isinstance(label, bool) or not isinstance(label, int):
            raise ValueError(
                f"`{name}` has an entry of type {type(label).__name__}; expected whole numbers or names of classes."
            )
        if not 0 <= label <= self.null_class:
            raise ValueError(
                f"`{name}` has {label}, but this model has the classes 0 to {self.null_class - 1}, and "
                f"{self.null_class} for none of them."
            )
        return label

    def encode_class_labels(
        self,
        class_labels: ClassLabels,
        negative_class_labels: ClassLabels | None,
        num_images_per_label: int,
        device: torch.device,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Labels of the conditional and of the unconditional rows, `(B * n,)` each.

        Args:
            class_labels: B labels.
            negative_class_labels: B labels, one for all, or None for the null class.
            num_images_per_label: n, each row is repeated so often.
            device: of the labels.
        """
        labels = torch.tensor(self.resolve_class_labels(class_labels), device=device)
        if negative_class_labels is None:
            negatives = torch.full_like(labels, self.null_class)
        else:
            numbers = self.resolve_class_labels(negative_class_labels, "negative_class_labels")
            negatives = torch.tensor(numbers, device=device).expand(len(labels))
        return labels.repeat_interleave(num_images_per_label), negatives.repeat_interleave(num_images_per_label)


def _id_of_name(name: str, ids: Mapping[str, list[int]]) -> int:
    """The number of the one class of this name."""
    if not ids:
        raise ValueError(
            f"The classes of this model have no names, so {name!r} means nothing to it; pass numbers, or load the "
            "pipeline with `id2label`."
        )
    if name not in ids:
        by_folded_name = {known.casefold(): known for known in ids}
        near = difflib.get_close_matches(name.casefold(), by_folded_name, n=_NUM_SUGGESTIONS)
        hint = (
            f"did you mean {' or '.join(repr(by_folded_name[entry]) for entry in near)}?" if near else "none is near."
        )
        raise ValueError(f"No class is called {name!r}; {hint} `pipeline.labels` lists all {len(ids)} names.")
    if len(ids[name]) > 1:
        numbers = " and ".join(str(number) for number in ids[name])
        raise ValueError(f"Classes {numbers} are all called {name!r}; pass the number of the one you mean.")
    return ids[name][0]
