# SPDX-License-Identifier: Apache-2.0
"""What the calls in a pickle are turned into: inert records, or the values of a few known types.

Names in a file are never imported or called. Tensors, parameters, bytes, numpy scalars and the containers of the
standard library are rebuilt by code in this module; everything else becomes a `PickledObject`, a plain record.
"""

import math
import struct
from collections.abc import Callable
from typing import Any

import torch

MAX_LISTED_NAME = 80
# Struct formats (little-endian) of numpy scalars that trainers log, by dtype string.
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
# Types whose storages torch saves as bytes, with the type named in the tensor.
UNTYPED_DTYPES = ("uint16", "uint32", "uint64", "complex32", "float8_e4m3fn", "float8_e5m2")


class PickledObject:
    """A record of an object whose class is not known here. It has no behaviour.

    Attributes:
        module: name of the module in the file; never imported.
        name: name of the class or function in the file; never called.
        args: arguments of the call in the file; None for the bare name.
        state: the object's attributes according to the file, or None.
        entries: contents of a subclass of dict, or None.
        items: contents of a subclass of list or of a set, or None.
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
        """The full dotted name, shortened to fit in a message."""
        return f"{self.module}.{self.name}"[:MAX_LISTED_NAME]

    def __repr__(self) -> str:
        return f"<inert {self.path}>"  # without its contents, which a file can make endless


def mapping_of(value: Any) -> dict[Any, Any] | None:
    """Return the entries of a dict or of an inert object: those of a subclass of dict, otherwise its attributes."""
    if isinstance(value, PickledObject):
        value = value.state if value.entries is None else value.entries
    return value if isinstance(value, dict) else None


def call(function: Any, args: Any) -> Any:
    """Return the value that a file's call of `function` with `args` stands for, without calling anything that the file
    names.

    Raises:
        ValueError: `function` is not a bare name, or the arguments are invalid for the known type that it names.
    """
    if not isinstance(function, PickledObject) or function.args is not None:
        raise ValueError("its pickle calls something that is not a name.")
    meaning = MEANINGS.get((function.module, function.name))
    return meaning(args) if meaning else PickledObject(function.module, function.name, args)


def is_count(value: Any) -> bool:
    """Return whether a value is a plain integer of at least 0."""
    return type(value) is int and value >= 0


def _is_counts(value: Any) -> bool:
    return type(value) is tuple and all(is_count(number) for number in value)


def _rebuild_tensor(args: Any) -> torch.Tensor | PickledObject:
    """Rebuild a tensor from (storage, offset, shape, strides, ...); it must lie within its storage."""
    if not isinstance(args, tuple) or len(args) < 4:
        raise ValueError("it holds a tensor without shape.")
    flat, offset, shape, strides = args[:4]
    if isinstance(flat, PickledObject):  # a storage of an unsupported type
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
    """Rebuild a tensor from bytes: (storage, offset, shape, strides, requires_grad, hooks, dtype, ...)."""
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
    """Rebuild a dict: an empty one that is filled later (OrderedDict, defaultdict), or the one given (Counter)."""
    if isinstance(args, tuple) and len(args) == 1 and isinstance(args[0], dict):
        return args[0]
    return {}


def _rebuild_deque(args: Any) -> list[Any]:
    """Rebuild a deque as a list; its maximum length is not needed."""
    if isinstance(args, tuple) and args and isinstance(args[0], list):
        return args[0]
    return []


def _rebuild_bytes(args: Any) -> bytes:
    """Rebuild bytes, which pickle protocol 2 stores as text with the same code points."""
    if not (isinstance(args, tuple) and len(args) == 2 and isinstance(args[0], str) and args[1] == "latin1"):
        raise ValueError("it encodes bytes in a way that torch.save does not.")
    return args[0].encode("latin1")


def _rebuild_numpy_scalar(args: Any) -> Any:
    """Rebuild a Python number from (dtype, bytes); a scalar of any other type remains an inert record."""
    kind, data = args if isinstance(args, tuple) and len(args) == 2 else (None, None)
    code = kind.args[0] if isinstance(kind, PickledObject) and isinstance(kind.args, tuple) and kind.args else None
    layout = NUMPY_SCALARS.get(code) if isinstance(code, str) else None
    if layout is None or not isinstance(data, bytes) or len(data) != struct.calcsize(layout):
        return PickledObject("numpy", "scalar", args)
    return struct.unpack(layout, data)[0]


# The only names that are rebuilt. Protocol 2 writes Python 2's module names in some versions of torch and numpy.
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
