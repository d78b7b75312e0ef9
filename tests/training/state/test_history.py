# SPDX-License-Identifier: Apache-2.0
import json
import math
import random

import pytest

from diffusers_mdm.training.state.history import History


@pytest.fixture
def history(tmp_path):
    return History(tmp_path / "run" / "history.jsonl")


def test_numbers_come_back_bit_for_bit(history):
    values = [random.Random(0).uniform(-1, 1) * 10.0**exponent for exponent in range(-300, 300, 7)] + [0.1 + 0.2]
    for step, value in enumerate(values):
        history.add(step, 8 * step, "inner", **{"loss/level_0": value})
    assert [row["loss/level_0"] for row in history.read()] == values


def test_a_missing_file_is_an_empty_history(history):
    assert history.read() == []
    history.cut_after(3)
    assert not history.path.exists()


def test_numbers_that_are_not_finite_stay_readable_json(history):
    history.add(1, 8, "inner", a=math.nan, b=math.inf, c=1.0)
    assert json.loads(history.path.read_text(), parse_constant=pytest.fail)["c"] == 1.0
    (row,) = history.read()
    assert row.get("a") is row.get("b") is None


def test_a_torn_last_line_is_dropped_and_makes_room(history, caplog):
    history.add(1, 8, "inner", a=1.0)
    history.add(2, 16, "inner", a=2.0)
    whole = history.path.read_bytes()
    for cut in range(1, len(whole) // 2):
        history.path.write_bytes(whole[:-cut])
        assert [row["step"] for row in history.read()] == [1]
        assert "incomplete line" in caplog.text
        history.add(3, 24, "inner", a=3.0)
        assert [row["step"] for row in history.read()] == [1, 3]


def test_a_torn_line_longer_than_a_block_is_dropped(history):
    history.add(1, 8, "inner", a=1.0)
    with open(history.path, "ab") as file:
        file.write(b"x" * 10_000)
    history.add(2, 16, "inner", a=2.0)
    assert [row["step"] for row in history.read()] == [1, 2]


def test_a_file_of_one_torn_line_starts_anew(history):
    history.path.parent.mkdir()
    history.path.write_bytes(b'{"step": 1, "ima')
    history.add(2, 16, "inner", a=2.0)
    assert [row["step"] for row in history.read()] == [2]


def test_damage_in_the_middle_is_named(history, caplog):
    history.add(1, 8, "inner", a=1.0)
    with open(history.path, "ab") as file:
        file.write(b"\0\0\0\n[1]\n")
    history.add(2, 16, "inner", a=2.0)
    assert [row["step"] for row in history.read()] == [1, 2]
    assert "Line 2" in caplog.text
    assert "Line 3" in caplog.text


def test_cutting_keeps_what_a_checkpoint_knows(history):
    for step in range(1, 6):
        history.add(step, 8 * step, "inner", a=step / 3)
    before = history.path.read_text().splitlines()
    history.cut_after(3)
    assert history.path.read_text().splitlines() == before[:3]
    history.add(4, 32, "outer", a=0.5)
    assert [(row["step"], row["stage"]) for row in history.read()[2:]] == [(3, "inner"), (4, "outer")]
    assert [path.name for path in history.path.parent.iterdir()] == ["history.jsonl"]


def test_a_full_disk_is_an_os_error_and_loses_no_line(history):
    """A limit on the file's size stands in for the full disk: the write comes back short in the same way."""
    resource = pytest.importorskip("resource")
    history.add(1, 8, "inner", a=1.0)
    before = history.path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 10, hard))
    try:
        with pytest.raises(OSError, match="full"):
            history.add(2, 16, "inner", a=2.0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert history.path.read_bytes() == before
