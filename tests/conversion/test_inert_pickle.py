# SPDX-License-Identifier: Apache-2.0
"""The machine that interprets pickles as data: what its instructions build."""

import pickle

import pytest

from diffusers_mdm.conversion.inert_pickle import MAX_KEY_PARTS, run_inert


def no_storage(persistent_id):
    raise AssertionError("these pickles refer to no storage")


def read(value: object, protocol: int) -> object:
    return run_inert(pickle.dumps(value, protocol=protocol), no_storage)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize(
    "value",
    [
        None,
        [True, False, 0, -1, 2**40, -(2**40), 2**200, 1.5],
        ["text", "ü" * 300, b"bytes" * 100],
        [(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)],
        {"a": {"b": [1]}, 1: 2, None: 3, (1, "x"): 4},
        [[index] for index in range(2000)],
    ],
    ids=range(6),
)
def test_plain_values_come_out_as_they_went_in(value, protocol):
    if protocol == 2 and value == ["text", "ü" * 300, b"bytes" * 100]:
        value = value[:2]  # protocol 2 writes bytes as a call, for which see test_inert_objects
    assert read(value, protocol) == value


@pytest.mark.parametrize("protocol", [2, 4])
def test_what_is_shared_stays_shared_and_may_contain_itself(protocol):
    inner: list[object] = []
    inner.append(inner)
    pair = ([inner],)
    inner.append(pair)
    first, second = read([inner, inner], protocol)
    assert first is second
    assert first[0] is first
    assert first[1][0][0] is first


def test_long_tuples_are_no_keys():
    assert read({(0,) * MAX_KEY_PARTS: 1}, 2) == {(0,) * MAX_KEY_PARTS: 1}
    with pytest.raises(ValueError, match="uses a tuple as a dict key"):
        read({(0,) * (MAX_KEY_PARTS + 1): 1}, 2)


@pytest.mark.parametrize("program", [b"", b"\x80\x02", b".", b"\x80\x02K", b"garbage"])
def test_broken_programs_are_refused(program):
    with pytest.raises(ValueError):  # noqa: PT011  # by the standard library's decoder, in its own words
        run_inert(program, no_storage)
