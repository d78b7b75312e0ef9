# SPDX-License-Identifier: Apache-2.0
"""Interpreter of pickles as descriptions of data: no instruction imports, looks up or calls anything."""

import pickletools
from collections.abc import Callable
from typing import Any

import torch

from .inert_objects import PickledObject, call

KEY_TYPES = (str, int, float, bytes, type(None), PickledObject)
MAX_KEY_PARTS = 16


class _Mark:
    """Marks the place of a MARK instruction on the stack."""


_MARK = _Mark()


class _InertMachine:
    """Stack machine for pickle instructions, in which calls are recorded instead of executed."""

    def __init__(self, load_storage: Callable[[Any], torch.Tensor]):
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.load_storage = load_storage

    def pop(self) -> Any:
        item = self.stack.pop()
        if item is _MARK:
            raise ValueError("its pickle is malformed.")
        return item

    def pop_to_mark(self) -> list[Any]:
        items: list[Any] = []
        while (item := self.stack.pop()) is not _MARK:
            items.append(item)
        return items[::-1]

    def build(self, state: Any) -> None:
        target = self.stack[-1]
        if isinstance(target, PickledObject) and target.args is not None:
            target.state = state
        # torch stores the version numbers of modules as an attribute of the state dict; they are not weights.
        elif not isinstance(target, (dict, torch.Tensor)):
            raise ValueError(f"its pickle sets attributes of a {type(target).__name__}.")

    def set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, PickledObject) and target.args is not None:
            target.entries = {} if target.entries is None else target.entries
            target = target.entries
        if not isinstance(target, dict) or len(items) % 2:
            raise ValueError("its pickle sets items of something that is not a dict.")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not _is_cheap_key(key):
                raise ValueError(f"it uses a {type(key).__name__} as a dict key.")
            target[key] = value

    def extend(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, PickledObject) and target.args is not None:
            target.items = [] if target.items is None else target.items
            target = target.items
        if type(target) is not list:
            raise ValueError("its pickle appends to something that is not a list.")
        target.extend(items)

    def tuple_of(self, count: int) -> None:
        self.stack.append(tuple([self.pop() for _ in range(count)][::-1]))

    def stack_global(self) -> None:
        name, module = self.pop(), self.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise ValueError("its pickle names a class with something that is not text.")
        self.stack.append(PickledObject(module, name))

    def call_stacked(self) -> None:
        args, function = self.pop(), self.pop()
        self.stack.append(call(function, args))

    def call_stacked_with_names(self) -> None:
        names, args, function = self.pop(), self.pop(), self.pop()
        self.stack.append(call(function, (args, names)))

    def frozen_set(self) -> None:
        record = PickledObject("builtins", "frozenset", ())
        record.items = self.pop_to_mark()
        self.stack.append(record)


def _is_cheap_key(key: Any) -> bool:
    """Return whether a dict key is cheap to hash: a scalar, a short tuple of scalars, or a record (by identity)."""
    parts = key if type(key) is tuple else (key,)
    return len(parts) <= MAX_KEY_PARTS and all(isinstance(part, KEY_TYPES) for part in parts)


PUSHED_ARGUMENT = frozenset(
    {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"}
    | {"SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8"}
)
CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_SET": lambda: PickledObject("builtins", "set", ()),
    "MARK": lambda: _MARK,
}
INSTRUCTIONS: dict[str, Callable[[_InertMachine, Any], Any]] = {
    "PROTO": lambda machine, _: None,
    "FRAME": lambda machine, _: None,
    "GLOBAL": lambda machine, names: machine.stack.append(PickledObject(*names.split(" ", 1))),
    "STACK_GLOBAL": lambda machine, _: machine.stack_global(),
    "REDUCE": lambda machine, _: machine.call_stacked(),
    "NEWOBJ": lambda machine, _: machine.call_stacked(),
    "NEWOBJ_EX": lambda machine, _: machine.call_stacked_with_names(),
    "BUILD": lambda machine, _: machine.build(machine.pop()),
    "BINPERSID": lambda machine, _: machine.stack.append(machine.load_storage(machine.pop())),
    "APPEND": lambda machine, _: machine.extend([machine.pop()]),
    "APPENDS": lambda machine, _: machine.extend(machine.pop_to_mark()),
    "ADDITEMS": lambda machine, _: machine.extend(machine.pop_to_mark()),
    "FROZENSET": lambda machine, _: machine.frozen_set(),
    "SETITEM": lambda machine, _: machine.set_items([machine.pop(), machine.pop()][::-1]),
    "SETITEMS": lambda machine, _: machine.set_items(machine.pop_to_mark()),
    "POP": lambda machine, _: machine.stack.pop(),  # after an object that contains itself, like POP_MARK
    "POP_MARK": lambda machine, _: machine.pop_to_mark(),
    "TUPLE": lambda machine, _: machine.stack.append(tuple(machine.pop_to_mark())),
    "TUPLE1": lambda machine, _: machine.tuple_of(1),
    "TUPLE2": lambda machine, _: machine.tuple_of(2),
    "TUPLE3": lambda machine, _: machine.tuple_of(3),
    "BINPUT": lambda machine, index: machine.memo.__setitem__(index, machine.stack[-1]),
    "LONG_BINPUT": lambda machine, index: machine.memo.__setitem__(index, machine.stack[-1]),
    "MEMOIZE": lambda machine, _: machine.memo.__setitem__(len(machine.memo), machine.stack[-1]),
    "BINGET": lambda machine, index: machine.stack.append(machine.memo[index]),
    "LONG_BINGET": lambda machine, index: machine.stack.append(machine.memo[index]),
}


def run_inert(program: bytes, load_storage: Callable[[Any], Any]) -> Any:
    """Interpret a pickle as a description of data.

    Args:
        program: the pickle.
        load_storage: returns the flat tensor for a persistent id, or a record if its type is not supported.

    Raises:
        ValueError: the pickle contains something that torch.save would not write.
    """
    machine = _InertMachine(load_storage)
    try:
        for opcode, argument, _ in pickletools.genops(program):
            if opcode.name == "STOP":
                return machine.pop()
            if opcode.name in PUSHED_ARGUMENT:
                machine.stack.append(argument)
            elif opcode.name in CONSTANTS:
                machine.stack.append(CONSTANTS[opcode.name]())
            elif opcode.name in INSTRUCTIONS:
                INSTRUCTIONS[opcode.name](machine, argument)
            else:
                raise ValueError(f"its pickle uses the instruction {opcode.name}, which saved weights do not need.")
    except (IndexError, KeyError, TypeError, OverflowError) as error:
        raise ValueError(f"its pickle is malformed ({type(error).__name__}).") from error
    raise ValueError("its pickle has no end.")
