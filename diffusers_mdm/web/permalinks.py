# SPDX-License-Identifier: Apache-2.0
"""Settings as the query of a web address, and back: `?task=text&prompt=red+apple&seed=7`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import parse_qsl, urlencode

from .settings import Settings

# Numbers are read here; whether they are allowed is checked when they are drawn with.
_READERS: dict[str, Callable[[str], Any]] = {
    **dict.fromkeys(("level", "steps", "images", "seed"), int),
    "strength": float,
    "guidance": lambda text: tuple(float(scale) for scale in text.split(",")),
}
_NAMES = tuple(field.name for field in dataclasses.fields(Settings))
MAX_QUERY = 8000  # characters; servers and browsers refuse longer addresses


def to_query(settings: Settings) -> str:
    """Return the query, without the question mark; empty texts are omitted.

    Args:
        settings: what was drawn.
    """
    values = dataclasses.asdict(settings)
    values["guidance"] = ",".join(f"{scale:g}" for scale in settings.guidance)
    values["strength"] = f"{settings.strength:g}"
    return urlencode({name: value for name, value in values.items() if value != ""})


def from_query(query: str | Mapping[str, str]) -> dict[str, Any]:
    """Return those settings that a query contains, by name; other parameters of the address are ignored.

    Args:
        query: the part of the address behind the question mark, or its parameters.

    Raises:
        ValueError: a value cannot be read; a sentence for the visitor.
    """
    parameters = dict(parse_qsl(query, keep_blank_values=True)) if isinstance(query, str) else dict(query)
    if sum(map(len, parameters.values())) > MAX_QUERY:
        raise ValueError(f"The link is longer than {MAX_QUERY} characters, so its settings were not used.")
    settings: dict[str, Any] = {}
    for name in _NAMES:
        if name not in parameters:
            continue
        text = parameters[name]
        try:
            settings[name] = _READERS.get(name, str)(text)
        except ValueError as error:
            raise ValueError(
                f"The link has {name}={text[:40]}, which is not a number, so its settings were not used."
            ) from error
    return settings
