# SPDX-License-Identifier: Apache-2.0
"""Mistakes in metadata files name the file and the line."""

import json

import pyarrow
import pyarrow.parquet
import pytest

from diffusers_mdm.training.data.tables.listing import list_folder
from diffusers_mdm.training.data.tables.metadata import read_metadata

GOOD = b'{"file_name": "0.png", "text": "a"}\n'
BROKEN = {
    "cut short": ("metadata.jsonl", GOOD + b'{"file_name": "1.png", "te', r"metadata\.jsonl, line 2: it is not JSON"),
    "a list": ("metadata.jsonl", GOOD + b"\n[1]", r"metadata\.jsonl, line 3: expected an object"),
    "no UTF-8": ("metadata.jsonl", GOOD + b'{"file_name": "\xe9"}', r"metadata\.jsonl, line 2: it is not UTF-8"),
    "deep": ("metadata.jsonl", b'{"a": ' * 100_000, r"metadata\.jsonl, line 1: it is not JSON"),
    "no name": ("metadata.jsonl", GOOD + b'{"text": "b"}', r"line 2: there is no `file_name`.*it has text"),
    "number": ("metadata.jsonl", b'{"file_name": 5}', r"line 1: `file_name` must be the name of a file"),
    "outside": ("metadata.jsonl", GOOD + b'{"file_name": "../x.png"}', r"line 2: `file_name` is '../x.png', outside"),
    "absolute": ("metadata.jsonl", b'{"file_name": "/etc/hostname"}', r"line 1: `file_name` is .*, outside"),
    "url": ("metadata.jsonl", b'{"file_name": "file:///etc/hostname"}', r"line 1: `file_name` is .*, outside"),
    "latin-1": (
        "metadata.csv",
        "file_name,text\n0.png,café\n".encode("latin-1"),
        r"metadata\.csv, line 2: it is not UTF",
    ),
    "commas": (
        "metadata.csv",
        b"file_name,text\n0.png,red, round\n",
        r"line 2: it has 3 values, expected 2 .*in quotes",
    ),
    "twice": ("metadata.csv", b"file_name,text,text\n", r"line 1: a column is named twice"),
    "quotes": ("metadata.csv", b'file_name,text\n0.png,"open\n', r"metadata\.csv, line 2: it is not CSV"),
    "no table": ("metadata.parquet", b"PAR1 no more", r"metadata\.parquet, row 1: it cannot be read as parquet"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_mistakes_name_file_and_line(tmp_path, case):
    name, content, message = BROKEN[case]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        read_metadata(list_folder(tmp_path), "image")
    assert str(tmp_path.resolve()) in str(caught.value)
    assert len(str(caught.value)) < 600


def test_all_kinds_say_the_same(tmp_path):
    rows = [{"file_name": "a.png", "text": "one"}, {"file_name": "sub\\b.png", "text": 'two, "2"'}]
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "metadata.jsonl").write_text("\ufeff" + "\r\n".join(map(json.dumps, rows)), encoding="utf-8")
    (tmp_path / "2").mkdir()
    (tmp_path / "2" / "metadata.csv").write_text('file_name,text\r\na.png,one\r\n\r\nsub/b.png,"two, ""2"""\r\n')
    (tmp_path / "3").mkdir()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "3" / "metadata.parquet")
    records = read_metadata(list_folder(tmp_path), "image")
    names = [f"{folder}/{name}" for folder in "123" for name in ("a.png", "sub/b.png")]
    assert [record.media for record in records] == names
    assert [record.values["text"] for record in records] == ["one", 'two, "2"'] * 3


def test_absolute_names_of_files_inside_are_theirs(tmp_path):
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"video_file_name": str(tmp_path.resolve() / "x" / "0.mp4")}))
    (record,) = read_metadata(list_folder(tmp_path), "video")
    assert record.media == "x/0.mp4"
