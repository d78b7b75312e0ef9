# SPDX-License-Identifier: Apache-2.0
"""Tar files that nobody vouches for: headers that lie, loop or never end."""

import io
import tarfile

import pytest

from diffusers_mdm.training.data.shards.index import MAX_HEADER_BYTES, Part, TarSample, index_tar
from diffusers_mdm.training.data.skip_budget import UnusableSampleError
from tests.training.image_files import png, write_tar


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    member = tarfile.TarInfo(name)
    member.size, member.type = size, kind
    return member.tobuf(tarfile.USTAR_FORMAT)


def pax(**values: str) -> bytes:
    records = b""
    for key, value in values.items():
        length = len(f" {key}={value}\n")
        length += len(str(length + len(str(length))))
        records += f"{length} {key}={value}\n".encode()
    return header("pax", len(records), tarfile.XHDTYPE) + records.ljust(-(-len(records) // 512) * 512, b"\0")


GOOD = header("a.png", 3) + b"red".ljust(512, b"\0")
HOSTILE = {
    "a negative size": pax(size="-5") + header("b.png", 0),
    "a size that leads back": pax(size="-2048") + header("b.png", 0),
    "a size beyond any disk": pax(size="9" * 40) + header("b.png", 0),
    "a chain of headers": pax(mtime="1") * 3000 + header("b.png", 0),
    "a huge header": header("pax", MAX_HEADER_BYTES + 1, tarfile.XHDTYPE),
    "a huge name": header("long", 2**40 % 8**11, tarfile.GNUTYPE_LONGNAME),
    "a broken sparse map": pax(**{"GNU.sparse.map": "1,x", "GNU.sparse.name": "c"}) + header("b.png", 0),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_headers_that_lie_end_the_list_with_a_reason(tmp_path, case):
    path = tmp_path / "0.tar"
    path.write_bytes(GOOD + GOOD.replace(b"a.png", b"z.png", 1) + HOSTILE[case] + bytes(1024))
    index = index_tar(path)
    assert index.problem is not None or all(part.size in (0, 3) for sample in index.samples for part in sample.parts)
    assert len(index.samples) <= 3


def test_sizes_of_parts_are_checked_before_they_are_read(tmp_path):
    path = write_tar(tmp_path / "0.tar", [("a", {"png": png()})])
    for size in (-1, 2**40):
        sample = TarSample(str(path), "0.tar", "a", (Part("png", 512, size),))
        with pytest.raises(UnusableSampleError, match=r"\.png has .* bytes, expected at most 256 MiB"):
            sample.read(sample.parts[0])


def test_names_that_are_no_text_can_be_written_in_messages(tmp_path):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.GNU_FORMAT, encoding="latin-1") as tar:
        member = tarfile.TarInfo("é\x1b.png")
        tar.addfile(member)
    (tmp_path / "0.tar").write_bytes(stream.getvalue())
    (sample,) = index_tar(tmp_path / "0.tar").samples
    sample.name.encode("utf-8")
    assert "\x1b" not in sample.name
