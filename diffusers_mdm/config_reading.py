# SPDX-License-Identifier: Apache-2.0
"""Reading untrusted config files (YAML, JSON) as plain values of bounded size.

A few hundred bytes of YAML can stand for 2^60 values (anchors inside anchors) or for a value that contains itself, and
a key given twice silently drops a setting. `read_yaml` and `read_json` refuse all of that with a ValueError that names
the file and the line, so that the result can safely be traversed, compared and printed.
"""

import json
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from .checked_values import describe

MAX_YAML_BYTES = 1 << 20
MAX_JSON_BYTES = 1 << 26  # the weight index of a large sharded model takes a few MiB
MAX_DEPTH = 64
MAX_VALUES = 200_000
MAX_NUMBER_LENGTH = 64
MAX_MESSAGE = 600
# The types that an unquoted word can have. YAML 1.1 would also turn 2026-01-31 into a date; no config here has dates,
# but revisions, columns and classes may have such names.
_TAGS = ("null", "bool", "int", "float", "merge")
_PLAIN_TAGS = {f"tag:yaml.org,2002:{name}" for name in (*_TAGS, "str", "seq", "map")}
_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
_MERGE = "tag:yaml.org,2002:merge"


def read_yaml(path: str | Path) -> Any:
    """Return the value of a YAML file: None, bool, int, float, str, lists and dicts of them.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not YAML of plain values, gives a key twice, or is larger or more deeply nested than a
            config.
    """
    text = _read_text(Path(path), MAX_YAML_BYTES)
    try:
        return yaml.load(text, _BoundedLoader)  # a SafeLoader with fewer tags
    except (yaml.YAMLError, RecursionError) as error:
        # PyYAML's messages quote aliases and tags in full, however long they are.
        raise ValueError(f"{path} is not a YAML file that can be read here: {str(error)[:MAX_MESSAGE]}") from error


def read_json(path: str | Path) -> Any:
    """Return the value of a JSON file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not JSON, gives a key twice, or is larger or more deeply nested than a config.
    """
    text = _read_text(Path(path), MAX_JSON_BYTES)
    try:
        return json.loads(text, object_pairs_hook=_without_duplicates)
    except RecursionError:
        raise ValueError(f"{path} is not JSON that can be read here: its lists are nested too deeply.") from None
    except ValueError as error:
        raise ValueError(f"{path} is not JSON that can be read here: {error}") from error


def _read_text(path: Path, max_bytes: int) -> str:
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    with path.open("rb") as file:
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise ValueError(f"{path} has more than {max_bytes} bytes, which no config needs. Is it another kind of file?")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a text file in UTF-8: {error}") from error


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {describe(key)} is given twice; keep one of them.")
        found[key] = value
    return found


class _BoundedLoader(yaml.SafeLoader):
    """A SafeLoader for plain values that counts every value as often as aliases repeat it."""

    def __init__(self, text: str):
        super().__init__(text)
        self._depth = 0
        self._num_values = 0
        self._sizes: dict[yaml.Node, int] = {}  # how many values each finished node stands for, aliases included

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        start = self.peek_event().start_mark
        before = self._num_values
        self._depth += 1
        is_alias = self.check_event(yaml.AliasEvent)
        if self._depth > MAX_DEPTH:
            raise yaml.composer.ComposerError(None, None, f"values are nested more than {MAX_DEPTH} deep", start)
        node = super().compose_node(parent, index)
        if is_alias and node not in self._sizes:
            raise yaml.composer.ComposerError(None, None, "a value contains itself through its alias", start)
        self._num_values += self._sizes[node] if is_alias and node is not None else 1
        if self._num_values > MAX_VALUES:
            problem = f"aliases included, it has more than {MAX_VALUES} values, which no config needs"
            raise yaml.composer.ComposerError(None, None, problem, start)
        if not is_alias and node is not None:
            self._sizes[node] = self._num_values - before
        self._depth -= 1
        return node

    # PyYAML's type stubs declare a different argument from the one that PyYAML passes.
    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: set[Hashable] = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                problem = "a key is a list or a mapping; expected text or a number"
                raise yaml.composer.ComposerError(None, None, problem, key_node.start_mark)
            if key_node.tag == _MERGE:
                continue
            key = self.construct_object(key_node)
            if key in seen:
                problem = f"the key {describe(key)} is given twice; keep one of them"
                raise yaml.composer.ComposerError(None, None, problem, key_node.start_mark)
            seen.add(key)
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        if node.tag not in _PLAIN_TAGS:
            problem = f"a value has the tag {describe(node.tag)}; only plain values are read"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
        if node.tag in _NUMBERS and len(node.value) > MAX_NUMBER_LENGTH:
            problem = f"a number has more than {MAX_NUMBER_LENGTH} characters"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
        try:
            return super().construct_object(node, deep=deep)
        except (ValueError, KeyError, OverflowError) as error:  # a tag such as !!int on a value that is not an integer
            problem = f"{describe(node.value)} is not of the type {node.tag!r} that it claims"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark) from error


_BoundedLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag in _PLAIN_TAGS]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
