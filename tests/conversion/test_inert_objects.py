# SPDX-License-Identifier: Apache-2.0
"""What calls in a pickle stand for."""

import pytest
import torch

from diffusers_mdm.conversion.inert_objects import PickledObject, call, mapping_of


def name(module: str, function: str) -> PickledObject:
    return PickledObject(module, function)


def test_unknown_names_become_records():
    found = call(name("os", "system"), ("true",))
    assert (found.path, found.args, found.state, found.entries, found.items) == (
        "os.system",
        ("true",),
        None,
        None,
        None,
    )
    with pytest.raises(ValueError, match="calls something that is not a name"):
        call(found, ())
    with pytest.raises(ValueError, match="calls something that is not a name"):
        call("os.system", ())


@pytest.mark.parametrize(
    ("module", "function", "args", "expected"),
    [
        ("collections", "OrderedDict", (), {}),
        ("collections", "defaultdict", (name("builtins", "list"),), {}),
        ("collections", "Counter", ({"a": 2},), {"a": 2}),
        ("collections", "deque", ((), 3), []),
        ("collections", "deque", ([1, 2],), [1, 2]),
        ("_codecs", "encode", ("\u00ff", "latin1"), b"\xff"),
    ],
)
def test_known_names_get_their_values(module, function, args, expected):
    assert call(name(module, function), args) == expected


def test_dicts_are_not_copied():
    # A file may name one large dict many times.
    large = {"a": 1}
    assert call(name("collections", "Counter"), (large,)) is large


def test_numpy_scalars():
    kind = call(name("numpy", "dtype"), ("f8", False, True))
    scalar = name("numpy._core.multiarray", "scalar")
    assert call(scalar, (kind, b"\0\0\0\0\0\0\xf8\x3f")) == 1.5
    assert isinstance(call(scalar, (kind, b"short")), PickledObject)


def test_tensors_stay_inside_their_storage():
    rebuild = name("torch._utils", "_rebuild_tensor_v2")
    assert call(rebuild, (torch.arange(6), 1, (2, 2), (2, 1))).tolist() == [[1, 2], [3, 4]]
    assert call(rebuild, (torch.arange(6), 9, (0,), (1,))).shape == (0,)
    with pytest.raises(ValueError, match="outside its storage"):
        call(rebuild, (torch.arange(6), 1, (3, 2), (2, 1)))
    unread = PickledObject("torch", "QInt8Storage", ())
    assert call(rebuild, (unread, 0, (1,), (1,))) is unread


def test_mappings_are_entries_before_attributes():
    record = PickledObject("m", "Settings", ())
    assert mapping_of(record) is None
    record.state = {"depth": 1}
    assert mapping_of(record) == {"depth": 1}
    record.entries = {"a": 2}
    assert mapping_of(record) == {"a": 2}
    assert mapping_of([1]) is None
