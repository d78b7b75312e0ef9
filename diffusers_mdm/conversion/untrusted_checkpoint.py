# SPDX-License-Identifier: Apache-2.0
"""Reading untrusted PyTorch checkpoints without executing anything that they contain.

A pickle is a program for a stack machine, and two of its instructions (REDUCE, NEWOBJ) call whatever the file names.
The published MDM trainer pickles its own argument objects beside the weights, so its files need an unpickler that
either knows foreign classes or does not need to. Three ways were considered:

* `pickle.Unpickler` with a `find_class` allow-list still *calls* what is allowed, and BUILD lets a file set attributes
  on the allowed functions and classes themselves, which persist after loading.
* `torch.load(weights_only=True)` with inert classes added through `torch.serialization.safe_globals` also calls: about
  sixty torch functions are allowed, changes to the list affect the whole process, blocked modules cannot be made
  inert, and its safety depends on the installed version of torch.
* This module decodes the instructions with the standard library's `pickletools.genops`, which only parses, and
  interprets them itself (`inert_pickle`). That interpreter has no instruction that imports, looks up or calls
  anything: a global is a pair of strings, and REDUCE, NEWOBJ and BUILD create or fill a `PickledObject`, a plain
  record. Only the names in `inert_objects.MEANINGS` are rebuilt (tensors, parameters, bytes, numpy scalars and the
  containers of the standard library), by code of this package.

What a hostile file could still try, and how it is prevented: huge allocations (every count is bounded by the size of
the file), memo bombs (objects are shared, never copied or printed), keys that take long to hash (keys must be scalars
or short tuples of them), tensors that reach outside their storage (checked), compressed archive members that expand
(only uncompressed members are read).
"""

import struct
import zipfile
from pathlib import Path
from typing import Any

import torch

from .inert_objects import MAX_LISTED_NAME, PickledObject, is_count, mapping_of
from .inert_pickle import run_inert

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
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
    "UntypedStorage": torch.uint8,
}
# Before it wrote zip archives, torch.save wrote a bare pickle that begins with this magic number.
LEGACY_MAGIC = bytes.fromhex("80028a0a6cfc9c46f9206aa850192e")


def read_untrusted_checkpoint(path: str | Path) -> dict[str, Any]:
    """Return the contents of a `.pth` file, with tensors on the CPU and objects of foreign classes as
    `PickledObject`s.

    Args:
        path: a file written by `torch.save` in its zip format (the default since torch 1.6).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, is not a checkpoint, or contains something that weights do not need.
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
        raise ValueError(f"{path} is a damaged checkpoint ({error}). Download it again.") from error
    except ValueError as error:
        raise ValueError(f"{path} cannot be read as a checkpoint: {error}") from error
    entries = mapping_of(contents)
    if entries is None:
        kind = contents.path if isinstance(contents, PickledObject) else type(contents).__name__
        raise ValueError(f"{path} contains a {kind}; expected a dict.")
    return entries


def _why_not_a_zip(path: Path) -> str:
    with path.open("rb") as file:
        head = file.read(64)
    if head.startswith(LEGACY_MAGIC):
        return (
            f"{path} was written in the format of torch before version 1.6, which is not supported. If you trust "
            f"it, load it with torch and save it again with torch.save, which writes a zip archive."
        )
    if head.startswith(b"PK"):
        return (
            f"{path} is a truncated checkpoint: it starts as a zip archive, but the directory at its end is missing."
        )
    if head.startswith(b"version https://git-lfs"):
        return f"{path} is a Git LFS pointer, not the checkpoint itself: run `git lfs pull`."
    return f"{path} is not a checkpoint: torch.save writes a zip archive, and this file is not one."


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
            raise ValueError("it was written on a big-endian machine, whose byte order is not supported.")
        return run_inert(bytes(self.record("data.pkl")), self.storage)

    def record(self, name: str) -> bytearray:
        """Return one record; all records together must not be larger than the file that contains them."""
        info = self.members.get(f"{self.root}/{name}")
        if info is None:
            raise ValueError(f"its record {name[:MAX_LISTED_NAME]!r} is missing.")
        if info.compress_type != zipfile.ZIP_STORED or info.file_size > self.remaining_bytes:
            raise ValueError(f"its record {name[:MAX_LISTED_NAME]!r} claims to be larger than the file.")
        self.remaining_bytes -= info.file_size
        with self.archive.open(info) as stream:
            data = bytearray(stream.read(info.file_size))  # writable, as torch.frombuffer requires
        if len(data) != info.file_size:
            raise ValueError(f"its record {name[:MAX_LISTED_NAME]!r} is truncated.")
        return data

    def storage(self, persistent_id: Any) -> torch.Tensor | PickledObject:
        """Return the flat tensor of a storage, or a record of it if its type is not supported.

        Ids are ("storage", type, key, device, number of elements).
        """
        if not (isinstance(persistent_id, tuple) and len(persistent_id) == 5 and persistent_id[0] == "storage"):
            raise ValueError("it refers to something outside the pickle that is not a tensor storage.")
        _, kind, key, _, count = persistent_id
        if not isinstance(kind, PickledObject) or not isinstance(key, str) or not is_count(count):
            raise ValueError("it holds a tensor storage without type or size.")
        dtype = STORAGE_DTYPES.get(kind.name) if kind.module in ("torch", "torch.storage") else None
        if dtype is None:
            return PickledObject(kind.module, kind.name, ())
        if key not in self.storages:
            data = self.record(f"data/{key}")
            if len(data) % dtype.itemsize:
                raise ValueError(f"its storage {key[:MAX_LISTED_NAME]!r} has a size that does not fit its type.")
            self.storages[key] = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
        flat = self.storages[key]
        if flat.dtype != dtype or flat.numel() != count:
            raise ValueError(f"its storage {key[:MAX_LISTED_NAME]!r} is not of the type and size that it declares.")
        return flat
