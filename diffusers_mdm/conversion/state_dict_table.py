# SPDX-License-Identifier: Apache-2.0
"""Renaming, splitting and reshaping of state dicts by a table, for both foreign formats.

Both formats nest levels recursively (the level inside `x` is `x.inner_unet`, so names start at the outermost level)
and keep the text modules in the innermost level; our model has a flat list of levels, innermost first, with the text
modules before it. Values are never computed with, so `to_foreign(to_native(x)) == x` bit for bit.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch

StateDict = dict[str, torch.Tensor]
INNER = "inner_unet."
MAX_LISTED = 5
MAX_NAME_LENGTH = 500
MAX_LEVELS = 16
_NESTING = re.compile(rf"(?:{re.escape(INNER)})*")
_FIELD = re.compile(r"\\\{(\w)\\\}")


@dataclass(frozen=True)
class Row:
    """One rule of the table: which foreign module corresponds to which of our modules.

    Attributes:
        foreign: module name within its level; `{i}`, `{j}` stand for numbers, `{m}` for a word.
        native: names of our modules with the same placeholders, without `levels.N.`; if there are several, the foreign
            tensor is fused and its first dimension is split among them.
        pointwise: whether the foreign module is a 1x1 convolution and ours a linear layer.
    """

    foreign: str
    native: tuple[str, ...]
    pointwise: bool = False


def _pattern(template: str) -> re.Pattern[str]:
    def group(match: re.Match[str]) -> str:
        kind = r"[^.]+" if match[1] == "m" else r"\d+"
        return f"(?P<{match[1]}>{kind})"

    return re.compile(_FIELD.sub(group, re.escape(template)))


class StateDictTable:
    """The table of one foreign format, usable in both directions.

    Args:
        level_rows: rules for modules of every level.
        text_rows: rules for modules of the innermost level only, which are outside `levels` in our model.
        unused: first name parts of modules that outer levels may have but never use.
    """

    def __init__(self, level_rows: Iterable[Row], text_rows: Iterable[Row], unused: Iterable[str] = ()):
        self.unused = frozenset(unused)
        self._foreign = {
            part: [(_pattern(row.foreign), row) for row in rows]
            for part, rows in (("level", tuple(level_rows)), ("text", tuple(text_rows)))
        }
        self._native = {
            part: [(_pattern(name), row, index) for _, row in rows for index, name in enumerate(row.native)]
            for part, rows in self._foreign.items()
        }

    def to_native(self, foreign: Mapping[str, torch.Tensor]) -> tuple[StateDict, StateDict]:
        """Return (our state dict, tensors that outer levels have but never use, under their foreign names).

        Raises:
            ValueError: no rule covers a name, or a tensor cannot be split or reshaped as its rule says.
        """
        outermost = count_levels(foreign) - 1
        native: StateDict = {}
        unused: StateDict = {}
        unknown: list[str] = []
        for name, tensor in foreign.items():
            depth, local = _split_depth(name)
            level = outermost - depth
            if level > 0 and local.split(".")[0] in self.unused:
                unused[name] = tensor
                continue
            targets = self._native_names(local, level)
            if targets is None:
                unknown.append(name)
                continue
            row, names = targets
            native.update(zip(names, _split(tensor, row, name), strict=True))
        if unknown:
            raise ValueError(f"The checkpoint has {len(unknown)} unknown tensors: {_first(unknown)}.")
        return native, unused

    def _native_names(self, local: str, level: int) -> tuple[Row, list[str]] | None:
        module, _, suffix = local.rpartition(".")
        for part, prefix in (("level", f"levels.{level}."), ("text", "")):
            if part == "text" and level != 0:
                continue
            for pattern, row in self._foreign[part]:
                if match := pattern.fullmatch(module):
                    return row, [f"{prefix}{name.format(**match.groupdict())}.{suffix}" for name in row.native]
        return None

    def to_foreign(self, native: Mapping[str, torch.Tensor]) -> StateDict:
        """Return the foreign state dict: the inverse of `to_native`, without the tensors that are never used.

        Raises:
            ValueError: no rule covers a name, or a part of a fused tensor is missing.
        """
        levels = {int(name.split(".")[1]) for name in native if name.startswith("levels.")}
        outermost = max(levels, default=0)
        parts: dict[str, tuple[Row, dict[int, torch.Tensor]]] = {}
        unknown = []
        for name, tensor in native.items():
            target = self._foreign_name(name, outermost)
            if target is None:
                unknown.append(name)
                continue
            foreign_name, row, index = target
            parts.setdefault(foreign_name, (row, {}))[1][index] = tensor
        if unknown:
            raise ValueError(f"The other format has no place for {len(unknown)} tensors: {_first(unknown)}.")
        return {name: _join(tensors, row, name) for name, (row, tensors) in parts.items()}

    def _foreign_name(self, name: str, outermost: int) -> tuple[str, Row, int] | None:
        part, level, local = "text", 0, name
        if name.startswith("levels."):
            _, number, local = name.split(".", 2)
            part, level = "level", int(number)
        module, _, suffix = local.rpartition(".")
        for pattern, row, index in self._native[part]:
            if match := pattern.fullmatch(module):
                foreign = f"{row.foreign.format(**match.groupdict())}.{suffix}"
                return INNER * (outermost - level) + foreign, row, index
        return None


def check_names(state_dict: Mapping[str, torch.Tensor]) -> None:
    """Raise a ValueError if a state dict is empty or contains something other than named tensors."""
    if not state_dict or not all(isinstance(name, str) for name in state_dict):
        raise ValueError("The checkpoint has no named tensors; expected a state dict.")
    long = [name for name in state_dict if len(name) > MAX_NAME_LENGTH]
    if long:
        raise ValueError(f"The state dict has a name of {len(long[0])} characters; no model has such names.")
    wrong = [name for name, tensor in state_dict.items() if not isinstance(tensor, torch.Tensor)]
    if wrong:
        raise ValueError(f"The state dict holds {len(wrong)} entries that are not tensors: {_first(wrong)}.")


def count_levels(foreign: Mapping[str, torch.Tensor]) -> int:
    """Return the number of nested levels in a foreign state dict.

    Raises:
        ValueError: the state dict is empty, contains something other than named tensors, or nests deeper than any
            model.
    """
    check_names(foreign)
    levels = 1 + max(_split_depth(name)[0] for name in foreign)
    if levels > MAX_LEVELS:
        raise ValueError(f"The checkpoint nests {levels} levels; expected at most {MAX_LEVELS}.")
    return levels


def inner_levels(foreign: Mapping[str, torch.Tensor], num_levels: int) -> StateDict:
    """Return the foreign state dict of the inner `num_levels` levels alone.

    Raises:
        ValueError: the checkpoint does not have that many levels.
    """
    available = count_levels(foreign)
    if not 1 <= num_levels <= available:
        raise ValueError(f"The checkpoint has {available} levels, so {num_levels} of them cannot be taken.")
    prefix = INNER * (available - num_levels)
    return {name.removeprefix(prefix): tensor for name, tensor in foreign.items() if name.startswith(prefix)}


def _split_depth(name: str) -> tuple[int, str]:
    match = _NESTING.match(name)
    nesting = match[0] if match else ""
    return len(nesting) // len(INNER), name[len(nesting) :]


def _split(tensor: torch.Tensor, row: Row, name: str) -> tuple[torch.Tensor, ...]:
    if row.pointwise and tensor.ndim != 1:
        if tensor.ndim != 4 or tuple(tensor.shape[2:]) != (1, 1):
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}; expected a 1x1 convolution (O, I, 1, 1).")
        tensor = tensor.flatten(1)
    if tensor.ndim == 0 or tensor.shape[0] % len(row.native):
        raise ValueError(
            f"{name} has shape {tuple(tensor.shape)}, which cannot be split into {len(row.native)} equal parts."
        )
    return tensor.chunk(len(row.native))


def _join(tensors: dict[int, torch.Tensor], row: Row, name: str) -> torch.Tensor:
    missing = [row.native[index] for index in range(len(row.native)) if index not in tensors]
    if missing:
        raise ValueError(f"{name} cannot be assembled: {', '.join(missing)} is missing.")
    joined = torch.cat([tensors[index] for index in range(len(row.native))]) if len(tensors) > 1 else tensors[0]
    return joined[:, :, None, None] if row.pointwise and joined.ndim == 2 else joined


def _first(names: list[str]) -> str:
    return ", ".join(names[:MAX_LISTED]) + (", …" if len(names) > MAX_LISTED else "")
