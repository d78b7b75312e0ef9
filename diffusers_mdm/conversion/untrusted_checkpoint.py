# SPDX-License-Identifier: Apache-2.0
"""Read a PyTorch checkpoint that nobody vouches for, without running anything it contains.

A pickle is a program for a stack machine, and two of its instructions (REDUCE, NEWOBJ) call whatever the file names.
The published MDM trainer pickles its own argument objects beside the weights, so its files need an unpickler that
knows foreign classes, or one that does not care. Three ways were weighed:

* `pickle.Unpickler` with a `find_class` allow-list still *calls* what is allowed, and BUILD lets a file set attributes
  on the allowed functions and classes themselves, which outlives the load.
* `torch.load(weights_only=True)` with inert classes added through `torch.serialization.safe_globals` also calls: some
  sixty torch functions are allowed, the list is process-wide while it is changed, blocked modules cannot be made
  inert, and how safe it is depends on the installed torch.
* This module decodes the instructions with the standard library's `pickletools.genops`, which only parses, and
  interprets them itself. Its machine has no instruction that imports, looks up or calls anything: a global is a pair
  of strings, and REDUCE, NEWOBJ and BUILD make or fill a `PickledObject`, a plain record. Only five names are given a
  meaning (tensors, parameters, ordered dicts, bytes and numpy scalars), each by code written here.

What a hostile file could still try, and the answer: huge allocations (every count is bounded by the size of the
file), memo bombs (objects are shared, never copied or printed), deep nesting as dict keys (keys must be plain
scalars), tensors reaching outside their storage (checked), compressed archive members that inflate (only stored
members are read).
"""

import math
import pickletools
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

STORAGE_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
# numpy scalars that a trainer logs, by dtype string: struct format of the little-endian value.
NUMPY_SCALARS = {"f8": "<d", "f4": "<f", "i8": "<q", "i4": "<i", "u1": "<B", "b1": "<?"}
# torch.save wrote a bare pickle that opens with this magic number before it wrote zip archives.
LEGACY_MAGIC = bytes.fromhex("80028a0a6cfc9c46f9206aa850192e")
MAX_LISTED_NAME = 80


class PickledObject:
    """What a file says about an object of a class that is not known here. It has no behaviour.

    Attributes:
        module: module that the file names, never imported.
        name: class or function that the file names, never called.
        args: arguments the file wants it called with; None for the bare name.
        state: what the file wants the object's attributes to be, or None.
    """

    __slots__ = ("args", "module", "name", "state")

    def __init__(self, module: str, name: str, args: Any = None):
        self.module = module
        self.name = name
        self.args = args
        self.state: Any = None

    @property
    def path(self) -> str:
        """Full dotted name, shortened so that it can stand in a message."""
        return f"{self.module}.{self.name}"[:MAX_LISTED_NAME]

    def __repr__(self) -> str:
        return f"<inert {self.path}>"  # args and state are left out: a file can make them endless


class _Mark:
    """Where a MARK instruction stands on the stack."""


_MARK = _Mark()


def read_untrusted_checkpoint(path: str | Path) -> dict[str, Any]:
    """Return what a `.pth` file holds, tensors on the CPU, objects of foreign classes as inert `PickledObject`s.

    Args:
        path: a file written by `torch.save` in its zip format (the default since torch 1.6).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, is no checkpoint, or asks for something that weights do not need.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no checkpoint file {path}.")
    if not zipfile.is_zipfile(path):
        raise ValueError(_why_not_a_zip(path))
    try:
        with zipfile.ZipFile(path) as archive:
            contents = _TorchArchive(archive, path.stat().st_size).load()
    except (zipfile.BadZipFile, EOFError, struct.error, NotImplementedError, RuntimeError) as error:
        raise ValueError(f"{path} is a damaged checkpoint ({error}). Fetch it again.") from error
    except ValueError as error:
        raise ValueError(f"{path} cannot be read as a checkpoint: {error}") from error
    if not isinstance(contents, dict):
        raise ValueError(f"{path} holds a {type(contents).__name__} where a checkpoint holds a dict.")
    return contents


def _why_not_a_zip(path: Path) -> str:
    with path.open("rb") as file:
        head = file.read(64)
    if head.startswith(LEGACY_MAGIC):
        return (
            f"{path} was written in torch's format from before version 1.6, which is not read here. Open it where you "
            "trust it and save it again with torch.save, which writes a zip archive."
        )
    if head.startswith(b"PK"):
        return f"{path} is a truncated checkpoint: it starts as a zip archive but its directory, at the end, is gone."
    if head.startswith(b"version https://git-lfs"):
        return f"{path} is a Git LFS pointer, not the checkpoint itself: run `git lfs pull`."
    return f"{path} is not a checkpoint: torch.save writes a zip archive, this file is something else."


class _TorchArchive:
    """The records of one open checkpoint archive: `NAME/data.pkl` and `NAME/data/<key>`."""

    def __init__(self, archive: zipfile.ZipFile, file_size: int):
        self.archive = archive
        self.members = {info.filename: info for info in archive.infolist()}
        pickles = [name for name in self.members if name.split("/")[1:] == ["data.pkl"]]
        if len(pickles) != 1 or any(name.endswith("/constants.pkl") for name in self.members):
            raise ValueError("it is a zip archive, but not one that torch.save wrote for a dict of tensors.")
        self.root = pickles[0].rsplit("/", 1)[0]
        self.remaining_bytes = file_size
        self.storages: dict[str, torch.Tensor] = {}

    def load(self) -> Any:
        if f"{self.root}/byteorder" in self.members and self.record("byteorder") != b"little":
            raise ValueError("it was written on a big-endian machine, whose byte order is not read here.")
        return _run_inert(bytes(self.record("data.pkl")), self.storage)

    def record(self, name: str) -> bytearray:
        """Return one record; all records together may not be larger than the file they are in."""
        info = self.members.get(f"{self.root}/{name}")
        if info is None:
            raise ValueError(f"its record {name[:MAX_LISTED_NAME]!r} is missing.")
        if info.compress_type != zipfile.ZIP_STORED or info.file_size > self.remaining_bytes:
            raise ValueError(f"its record {name[:MAX_LISTED_NAME]!r} claims to be larger than the file has room for.")
        self.remaining_bytes -= info.file_size
        with self.archive.open(info) as stream:
            data = bytearray(stream.read(info.file_size))  # writable, as torch.frombuffer wants it
        if len(data) != info.file_size:
            raise ValueError(f"its record {name[:MAX_LISTED_NAME]!r} is truncated.")
        return data

    def storage(self, persistent_id: Any) -> torch.Tensor:
        """Return the flat tensor of a storage; ids are ("storage", type, key, device, number of elements)."""
        if not (isinstance(persistent_id, tuple) and len(persistent_id) == 5 and persistent_id[0] == "storage"):
            raise ValueError("it refers to something outside itself that is not a tensor storage.")
        _, kind, key, _, count = persistent_id
        dtype = STORAGE_DTYPES.get(kind.name) if isinstance(kind, PickledObject) and kind.module == "torch" else None
        if dtype is None or not isinstance(key, str) or not _is_count(count):
            raise ValueError("it holds a tensor storage of unknown type.")
        if key not in self.storages:
            data = self.record(f"data/{key}")
            if len(data) % dtype.itemsize:
                raise ValueError(f"its storage {key[:MAX_LISTED_NAME]!r} has a size that does not fit its type.")
            self.storages[key] = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
        flat = self.storages[key]
        if flat.dtype != dtype or flat.numel() != count:
            raise ValueError(f"its storage {key[:MAX_LISTED_NAME]!r} is not of the type and size that it declares.")
        return flat


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _is_counts(value: Any) -> bool:
    return type(value) is tuple and all(_is_count(number) for number in value)


def _rebuild_tensor(args: Any) -> torch.Tensor:
    """Tensor over a storage, from (storage, offset, shape, strides, ...), refused if it leaves the storage."""
    if not isinstance(args, tuple) or len(args) < 4:
        raise ValueError("it holds a tensor without shape.")
    flat, offset, shape, strides = args[:4]
    if not (isinstance(flat, torch.Tensor) and flat.ndim == 1 and _is_count(offset)):
        raise ValueError("it holds a tensor without storage.")
    if not (_is_counts(shape) and _is_counts(strides) and len(shape) == len(strides) <= 16):
        raise ValueError("it holds a tensor of impossible shape.")
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    if 0 not in shape and (last >= flat.numel() or math.prod(shape) > flat.numel()):
        raise ValueError("it holds a tensor that reaches outside its storage.")
    return flat.as_strided(shape, strides, offset if 0 not in shape else 0)


def _rebuild_parameter(args: Any) -> torch.Tensor:
    if not isinstance(args, tuple) or not args or not isinstance(args[0], torch.Tensor):
        raise ValueError("it holds a parameter without tensor.")
    return args[0]


def _rebuild_ordered_dict(args: Any) -> dict[Any, Any]:
    if args != ():
        raise ValueError("it fills a dict in a way that torch.save does not.")
    return {}


def _rebuild_bytes(args: Any) -> bytes:
    """Bytes, which pickle protocol 2 stores as the text of the same code points."""
    if not (isinstance(args, tuple) and len(args) == 2 and isinstance(args[0], str) and args[1] == "latin1"):
        raise ValueError("it encodes bytes in a way that torch.save does not.")
    return args[0].encode("latin1")


def _rebuild_numpy_scalar(args: Any) -> Any:
    """Python number from (dtype, bytes); a scalar of any other type stays an inert record."""
    kind, data = args if isinstance(args, tuple) and len(args) == 2 else (None, None)
    code = kind.args[0] if isinstance(kind, PickledObject) and isinstance(kind.args, tuple) and kind.args else None
    layout = NUMPY_SCALARS.get(code) if isinstance(code, str) else None
    if layout is None or not isinstance(data, bytes) or len(data) != struct.calcsize(layout):
        return PickledObject("numpy", "scalar", args)
    return struct.unpack(layout, data)[0]


# The only names with a meaning. Protocol 2 writes Python 2's module names in some versions of torch and numpy.
MEANINGS: dict[tuple[str, str], Callable[[Any], Any]] = {
    ("collections", "OrderedDict"): _rebuild_ordered_dict,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    ("_codecs", "encode"): _rebuild_bytes,
    ("numpy.core.multiarray", "scalar"): _rebuild_numpy_scalar,
    ("numpy._core.multiarray", "scalar"): _rebuild_numpy_scalar,
}


class _InertMachine:
    """Stack, memo and instructions of a pickle in which calling is recording."""

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

    def call(self, function: Any, args: Any) -> None:
        if not isinstance(function, PickledObject) or function.args is not None:
            raise ValueError("its pickle calls something that is not a name.")
        meaning = MEANINGS.get((function.module, function.name))
        self.stack.append(meaning(args) if meaning else PickledObject(function.module, function.name, args))

    def build(self, state: Any) -> None:
        target = self.stack[-1]
        if isinstance(target, PickledObject) and target.args is not None:
            target.state = state
        # torch keeps the version numbers of modules as an attribute of the state dict: no weights, so not kept.
        elif not isinstance(target, (dict, torch.Tensor)):
            raise ValueError(f"its pickle sets attributes of a {type(target).__name__}.")

    def set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict) or len(items) % 2:
            raise ValueError("its pickle sets items of something that is not a dict.")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, (str, int, float, bytes, type(None))):
                raise ValueError(f"it uses a {type(key).__name__} as a dict key.")
            target[key] = value

    def extend(self, items: list[Any]) -> None:
        if type(self.stack[-1]) is not list:
            raise ValueError("its pickle appends to something that is not a list.")
        self.stack[-1].extend(items)

    def tuple_of(self, count: int) -> None:
        self.stack.append(tuple([self.pop() for _ in range(count)][::-1]))

    def stack_global(self) -> None:
        name, module = self.pop(), self.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise ValueError("its pickle names a class by something that is not text.")
        self.stack.append(PickledObject(module, name))

    def call_stacked(self) -> None:
        args, function = self.pop(), self.pop()
        self.call(function, args)


PUSHED_ARGUMENT = frozenset(
    {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"}
    | {"SHORT_BINBYTES", "BINBYTES"}
)
CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "MARK": lambda: _MARK,
}
INSTRUCTIONS: dict[str, Callable[[_InertMachine, Any], Any]] = {
    "PROTO": lambda machine, _: None,
    "FRAME": lambda machine, _: None,
    "GLOBAL": lambda machine, names: machine.stack.append(PickledObject(*names.split(" ", 1))),
    "STACK_GLOBAL": lambda machine, _: machine.stack_global(),
    "REDUCE": lambda machine, _: machine.call_stacked(),
    "NEWOBJ": lambda machine, _: machine.call_stacked(),
    "BUILD": lambda machine, _: machine.build(machine.pop()),
    "BINPERSID": lambda machine, _: machine.stack.append(machine.load_storage(machine.pop())),
    "APPEND": lambda machine, _: machine.extend([machine.pop()]),
    "APPENDS": lambda machine, _: machine.extend(machine.pop_to_mark()),
    "SETITEM": lambda machine, _: machine.set_items([machine.pop(), machine.pop()][::-1]),
    "SETITEMS": lambda machine, _: machine.set_items(machine.pop_to_mark()),
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


def _run_inert(program: bytes, load_storage: Callable[[Any], torch.Tensor]) -> Any:
    """Interpret a pickle as a description of data; anything that torch.save would not write is a ValueError."""
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
                raise ValueError(f"its pickle uses the instruction {opcode.name}, which weights do not need.")
    except (IndexError, KeyError, TypeError, OverflowError) as error:
        raise ValueError(f"its pickle is malformed ({type(error).__name__}).") from error
    raise ValueError("its pickle has no end.")
