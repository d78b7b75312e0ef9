# SPDX-License-Identifier: Apache-2.0
"""What a pickle's calls mean here: inert records, and the few names that are understood, each by code written here.

A name of a file is never imported and never called. Tensors, parameters, bytes, numpy scalars and the containers of
the standard library get the value that they stand for; everything else becomes a `PickledObject`, a plain record.
"""

import math
import struct
from collections.abc import Callable
from typing import Any

import torch

MAX_LISTED_NAME = 80
# numpy scalars that a trainer logs, by dtype string: struct format of the little-endian value.
NUMPY_SCALARS = {
    "f8": "<d",
    "f4": "<f",
    "f2": "<e",
    "i8": "<q",
    "i4": "<i",
    "i2": "<h",
    "i1": "<b",
    "u8": "<Q",
    "u4": "<I",
    "u2": "<H",
    "u1": "<B",
    "b1": "<?",
}
# Types whose storages torch stores as bytes, naming the type with the tensor.
UNTYPED_DTYPES = ("uint16", "uint32", "uint64", "complex32", "float8_e4m3fn", "float8_e5m2")


class PickledObject:
    """What a file says about an object of a class that is not known here. It has no behaviour.

    Attributes:
        module: module that the file names, never imported.
        name: class or function that the file names, never called.
        args: arguments the file wants it called with; None for the bare name.
        state: what the file wants the object's attributes to be, or None.
        entries: what a subclass of dict holds, or None.
        items: what a subclass of list, or a set, holds, or None.
    """

    __slots__ = ("args", "entries", "items", "module", "name", "state")

    def __init__(self, module: str, name: str, args: Any = None):
        self.module = module
        self.name = name
        self.args = args
        self.state: Any = None
        self.entries: dict[Any, Any] | None = None
        self.items: list[Any] | None = None

    @property
    def path(self) -> str:
        """Full dotted name, shortened so that it can stand in a message."""
        return f"{self.module}.{self.name}"[:MAX_LISTED_NAME]

    def __repr__(self) -> str:
        return f"<inert {self.path}>"  # what it holds is left out: a file can make it endless


def mapping_of(value: Any) -> dict[Any, Any] | None:
    """Return the entries of a dict or of an inert object: its own, as a subclass of dict, or else its attributes."""
    if isinstance(value, PickledObject):
        value = value.state if value.entries is None else value.entries
    return value if isinstance(value, dict) else None


def call(function: Any, args: Any) -> Any:
    """Return what a file's call of `function` with `args` stands for, without calling anything of the file's choice.

    Raises:
        ValueError: `function` is not a bare name, or the arguments cannot be those of what it names.
    """
    if not isinstance(function, PickledObject) or function.args is not None:
        raise ValueError("its pickle calls something that is not a name.")
    meaning = MEANINGS.get((function.module, function.name))
    return meaning(args) if meaning else PickledObject(function.module, function.name, args)


def is_count(value: Any) -> bool:
    """Whether a value is a plain integer of at least 0."""
    return type(value) is int and value >= 0


def _is_counts(value: Any) -> bool:
    return type(value) is tuple and all(is_count(number) for number in value)


def _rebuild_tensor(args: Any) -> torch.Tensor | PickledObject:
    """Tensor over a storage, from (storage, offset, shape, strides, ...), refused if it leaves the storage."""
    if not isinstance(args, tuple) or len(args) < 4:
        raise ValueError("it holds a tensor without shape.")
    flat, offset, shape, strides = args[:4]
    if isinstance(flat, PickledObject):  # a storage of a type that is not read here
        return flat
    if not (isinstance(flat, torch.Tensor) and flat.ndim == 1 and is_count(offset)):
        raise ValueError("it holds a tensor without storage.")
    if not (_is_counts(shape) and _is_counts(strides) and len(shape) == len(strides) <= 16):
        raise ValueError("it holds a tensor of impossible shape.")
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    if 0 not in shape and (last >= flat.numel() or math.prod(shape) > flat.numel()):
        raise ValueError("it holds a tensor that reaches outside its storage.")
    return flat.as_strided(shape, strides, offset if 0 not in shape else 0)


def _rebuild_untyped_tensor(args: Any) -> torch.Tensor | PickledObject:
    """Tensor over bytes, from (storage, offset, shape, strides, requires_grad, hooks, dtype, ...)."""
    if not isinstance(args, tuple) or len(args) < 7:
        raise ValueError("it holds a tensor without shape.")
    flat, kind = args[0], args[6]
    name = kind.name if isinstance(kind, PickledObject) and kind.module == "torch" else None
    dtype = getattr(torch, name, None) if name in UNTYPED_DTYPES else None
    if not isinstance(flat, torch.Tensor) or dtype is None:
        return PickledObject("torch", str(name))
    if flat.dtype != torch.uint8 or flat.ndim != 1 or flat.numel() % dtype.itemsize:
        raise ValueError("it holds a tensor whose storage does not fit its type.")
    return _rebuild_tensor((flat.view(dtype), *args[1:4]))


def _rebuild_parameter(args: Any) -> torch.Tensor | PickledObject:
    if not isinstance(args, tuple) or not args or not isinstance(args[0], (torch.Tensor, PickledObject)):
        raise ValueError("it holds a parameter without tensor.")
    return args[0]


def _rebuild_dict(args: Any) -> dict[Any, Any]:
    """A dict that is filled afterwards (OrderedDict, defaultdict), or the one it was made from (Counter)."""
    if isinstance(args, tuple) and len(args) == 1 and isinstance(args[0], dict):
        return args[0]
    return {}


def _rebuild_deque(args: Any) -> list[Any]:
    """The list that a deque is filled to; its greatest length is of no use here."""
    if isinstance(args, tuple) and args and isinstance(args[0], list):
        return args[0]
    return []


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
    ("collections", "OrderedDict"): _rebuild_dict,
    ("collections", "defaultdict"): _rebuild_dict,
    ("collections", "Counter"): _rebuild_dict,
    ("collections", "deque"): _rebuild_deque,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v3"): _rebuild_untyped_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _rebuild_parameter,
    ("_codecs", "encode"): _rebuild_bytes,
    ("numpy.core.multiarray", "scalar"): _rebuild_numpy_scalar,
    ("numpy._core.multiarray", "scalar"): _rebuild_numpy_scalar,
}
