# SPDX-License-Identifier: Apache-2.0
"""Reading configs that nobody vouches for: plain values, within bounds, in bounded time."""

import os
import time

import pytest

from diffusers_mdm.config_reading import MAX_DEPTH, MAX_MESSAGE, MAX_YAML_BYTES, read_json, read_yaml

# Far more than any of these takes, and far less than one value of 2^60 parts would.
SECONDS = 30


@pytest.fixture(autouse=True)
def soon():
    start = time.process_time()
    yield
    assert time.process_time() - start < SECONDS


def write(folder, text: str, name: str = "config"):
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def nested_anchors(times: int, merge: bool = False) -> str:
    """YAML whose last value stands for 2^times copies of the first."""
    lines = ["v0: &v0 {key: leaf}"]
    for number in range(1, times + 1):
        inside = f"[*v{number - 1}, *v{number - 1}]"
        lines.append(f"v{number}: &v{number} " + (f"{{<<: {inside}}}" if merge else inside))
    return "\n".join(lines)


def test_plain_values(tmp_path):
    text = "a: 1\nb: [1.5, true, null, text]\nc: {d: .inf, 3: x}\n"
    text += "shared: &s {k: 1}\nagain: *s\nmerged: {<<: *s, k: 2}\n"
    expected = {
        "a": 1,
        "b": [1.5, True, None, "text"],
        "c": {"d": float("inf"), 3: "x"},
        "shared": {"k": 1},
        "again": {"k": 1},
        "merged": {"k": 2},
    }
    assert read_yaml(write(tmp_path, text)) == expected
    assert read_yaml(write(tmp_path, "\ufeff" + text)) == expected
    assert read_yaml(write(tmp_path, "")) is None


def test_words_that_look_like_dates_are_text(tmp_path):
    assert read_yaml(write(tmp_path, "revision: 2026-01-31\n")) == {"revision": "2026-01-31"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (nested_anchors(60), "more than .* values"),
        (nested_anchors(60, merge=True), "more than .* values"),
        ("a: &a {b: *a}", "contains itself"),
        ("a: &a [1, *a]", "contains itself"),
        ("[" * 10_000, f"nested more than {MAX_DEPTH}"),
        ("- " * 10_000 + "1", f"nested more than {MAX_DEPTH}"),
        ("a: 1\nb:\n  c: 1\n  c: 2\n", r"`?'c' is given twice(.|\n)*line 4"),
        ("a: 1\n'a': 2\n", "given twice"),
        ("1: x\n0x1: y\n", "given twice"),
        ("[1]: x\n", "a key is a list"),
        ("a: !!python/object/apply:os.system ['true']\n", "only plain values"),
        ("a: !!binary aGFsbG8=\n", "only plain values"),
        ("a: !!bool maybe\n", "not of the type"),
        ("a: !!int x\n", "not of the type"),
        ("a: " + "9" * 10_000, "number has more than"),
        ("a: 1" + ":59" * 10_000, "number has more than"),
        ("a: *" + "x" * 100_000, "undefined alias"),
        ("a: [1\n", "line 2"),
        ("a: \x00", "not a YAML"),
        ("#" * (MAX_YAML_BYTES + 1), "no config needs"),
    ],
    ids=range(20),
)
def test_yaml_that_is_refused(tmp_path, text, message):
    path = write(tmp_path, text)
    with pytest.raises(ValueError, match=message) as refusal:
        read_yaml(path)
    assert str(path) in str(refusal.value)
    assert len(str(refusal.value)) < 2 * MAX_MESSAGE


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 1_000_000, "nested too deeply"),
        ('{"a": 1, "b": {"c": 1, "c": 2}}', "'c' is given twice"),
        ('{"a": ' + "9" * 100_000 + "}", "digits"),
        ("{'a': 1}", "not JSON"),
    ],
    ids=range(4),
)
def test_json_that_is_refused(tmp_path, text, message):
    path = write(tmp_path, text)
    with pytest.raises(ValueError, match=message) as refusal:
        read_json(path)
    assert str(path) in str(refusal.value)
    assert len(str(refusal.value)) < 2 * MAX_MESSAGE


@pytest.mark.parametrize("read", [read_yaml, read_json])
def test_what_is_no_text_file(tmp_path, read):
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="not a text file in UTF-8"):
        read(tmp_path / "binary")
    for name in ("none", "folder"):
        with pytest.raises(FileNotFoundError, match=name):
            read(tmp_path / name)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
@pytest.mark.parametrize("read", [read_yaml, read_json])
def test_a_pipe_that_nobody_writes_to_does_not_wait(tmp_path, read):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FileNotFoundError, match="pipe"):
        read(tmp_path / "pipe")


def test_json_values(tmp_path):
    assert read_json(write(tmp_path, '{"a": [1, 2.5, null, true, "b"]}')) == {"a": [1, 2.5, None, True, "b"]}
