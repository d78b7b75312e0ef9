# SPDX-License-Identifier: Apache-2.0
"""A file is complete and right, or it is not there; whatever the server and the line do."""

import hashlib
import random

import pytest
from filelock import FileLock

from diffusers_mdm.fetching import download as module
from diffusers_mdm.fetching.download import Expected, Limits, check_address, download
from tests.fetching.file_server import Behaviour, serving

CONTENT = random.Random(0).randbytes(300_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
FAST = Limits(timeout=60, attempts=3, pause=0.001)


def fetch(behaviour: Behaviour, target, expected: Expected | None = None, limits: Limits = FAST, path="/file") -> str:
    with serving(behaviour) as address:
        return download(address + path, target, expected, limits)


def test_a_file_is_verified_and_not_asked_for_again(tmp_path):
    does = Behaviour(CONTENT)
    for _ in range(2):
        assert fetch(does, tmp_path / "a.pth", Expected(len(CONTENT), SHA256.upper())) == SHA256
    assert (tmp_path / "a.pth").read_bytes() == CONTENT
    assert does.requests == [None]
    assert not list(tmp_path.glob("*.part*"))


CUT = [100_000, 50_000]
# Requests that follow two cut connections, and what is asked for in each.
CONTINUES = [None, "bytes=100000-", "bytes=150000-"]


@pytest.mark.parametrize("tag", ['"one"', 'W/"weak"', None])
def test_cut_connections_are_continued(tag, tmp_path):
    does = Behaviour(CONTENT, tag=tag, cut_after=list(CUT))
    assert fetch(does, tmp_path / "a.pth") == SHA256
    assert does.requests == CONTINUES


def test_a_server_that_ignores_ranges_is_read_from_the_start(tmp_path):
    does = Behaviour(CONTENT, knows_ranges=False, cut_after=list(CUT))
    assert fetch(does, tmp_path / "a.pth") == SHA256
    assert len(does.requests) == 3


def test_an_interrupted_command_is_continued_by_the_next(tmp_path):
    does = Behaviour(CONTENT, cut_after=[100_000], statuses=[0, 503])
    with serving(does) as address:
        with pytest.raises(OSError, match="100,000 bytes have arrived; repeat the command"):
            download(f"{address}/file", tmp_path / "a.pth", limits=Limits(5, 1, 0))
        assert not (tmp_path / "a.pth").exists()
        assert download(f"{address}/file", tmp_path / "a.pth", limits=FAST) == SHA256
    assert does.requests[-1] == "bytes=100000-"


@pytest.mark.parametrize("knows_ranges", [True, False])
def test_a_file_that_has_changed_is_read_from_the_start(knows_ranges, tmp_path):
    first, second = Behaviour(CONTENT, cut_after=[100_000, 0]), CONTENT[::-1] + b"more"
    with serving(first) as address:
        with pytest.raises(OSError, match="could not be downloaded"):
            download(f"{address}/file", tmp_path / "a.pth", limits=Limits(5, 1, 0))
        first.content, first.tag, first.knows_ranges = second, '"two"', knows_ranges
        download(f"{address}/file", tmp_path / "a.pth", limits=FAST)
    assert (tmp_path / "a.pth").read_bytes() == second


def test_a_changed_file_is_noticed_although_the_server_ignores_the_condition(tmp_path):
    """Without a tag there is no condition to send; a shorter, longer or newly tagged file must still be noticed."""
    for number, (content, tag) in enumerate(
        ((CONTENT[::-1] + b"more", None), (b"short", None), (CONTENT[::-1], '"t"'))
    ):
        does, target = Behaviour(CONTENT, tag=None, cut_after=[100_000, 0]), tmp_path / f"{number}.pth"
        with serving(does) as address:
            with pytest.raises(OSError, match="could not be downloaded"):
                download(f"{address}/file", target, limits=Limits(5, 1, 0))
            does.content, does.tag = content, tag
            download(f"{address}/file", target, limits=FAST)
        assert target.read_bytes() == content


def test_a_part_of_unknown_origin_is_not_trusted(tmp_path):
    (tmp_path / "a.pth.part").write_bytes(b"x" * 1000)
    does = Behaviour(CONTENT)
    assert fetch(does, tmp_path / "a.pth") == SHA256
    assert does.requests == [None]
    (tmp_path / "b.pth.part").write_bytes(b"x" * 1000)
    (tmp_path / "b.pth.part.json").write_text('{"url": "http://other/file", "size": 5, "validator": null}')
    assert fetch(does, tmp_path / "b.pth") == SHA256


REFUSED = {
    "no such file": (Behaviour(CONTENT, statuses=[404]), None, "answered 404 Not Found"),
    "web page": (Behaviour(b"<p>", headers={"Content-Type": "text/html; charset=utf-8"}), None, "is a web page"),
    "compressed": (Behaviour(CONTENT, headers={"Content-Encoding": "gzip"}), None, "is sent compressed"),
    "other size": (Behaviour(CONTENT), Expected(size=5), "has 300,000 bytes; expected 5"),
    "longer than it should be": (
        Behaviour(CONTENT, has_length=False),
        Expected(size=5),
        "more than the 5 bytes that it may have",
    ),
    "other checksum": (Behaviour(CONTENT), Expected(sha256="0" * 64), f"checksum {SHA256}; expected 000"),
    "other part": (Behaviour(CONTENT, cut_after=[1000], shift=7), None, "another part of the file"),
    "local file": (Behaviour(CONTENT, statuses=[302], headers={"Location": "file:///x"}), None, "is not allowed"),
    "too large": (Behaviour(b"x", headers={"Content-Length": str(2**60)}, has_length=False), None, "bytes free"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_wrong_files_are_refused(case, tmp_path):
    does, expected, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        fetch(does, tmp_path / "a.pth", expected)
    assert not (tmp_path / "a.pth").exists()


def test_a_file_of_unknown_size_may_not_fill_the_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MAX_UNKNOWN_SIZE", 100_000)
    with pytest.raises(ValueError, match="more than the 100,000 bytes"):
        fetch(Behaviour(CONTENT, has_length=False), tmp_path / "a.pth")


def test_a_wrong_checksum_leaves_nothing_to_continue(tmp_path):
    with pytest.raises(ValueError, match="nothing was kept"):
        fetch(Behaviour(CONTENT), tmp_path / "a.pth", Expected(sha256="0" * 64))
    assert not list(tmp_path.glob("*.part*"))
    (tmp_path / "a.pth").write_bytes(b"mine")
    with pytest.raises(ValueError, match="has 4 bytes; expected 300,000"):
        fetch(Behaviour(CONTENT), tmp_path / "a.pth", Expected(len(CONTENT)))
    assert (tmp_path / "a.pth").read_bytes() == b"mine"


def test_a_silent_server_is_left_after_the_timeout(tmp_path):
    does = Behaviour(CONTENT, silence=2.0)
    with pytest.raises(OSError, match="150,000 bytes have arrived"):
        fetch(does, tmp_path / "a.pth", limits=Limits(timeout=0.5, attempts=1, pause=0))


def test_errors_of_the_server_are_waited_out(tmp_path):
    does = Behaviour(CONTENT, statuses=[503, 429])
    assert fetch(does, tmp_path / "a.pth") == SHA256
    assert len(does.requests) == 3


def test_no_server_is_an_error_of_the_network(tmp_path):
    with serving(Behaviour(CONTENT)) as address:
        pass
    with pytest.raises(OSError, match="could not be downloaded"):
        download(address, tmp_path / "a.pth", limits=Limits(5, 2, 0))


def test_encryption_is_not_given_up():
    request = module.urllib.request.Request("https://host/file")
    with pytest.raises(ValueError, match="is not encrypted"):
        module._NoDowngrade().redirect_request(request, None, 302, "", {}, "http://host/file")


def test_one_process_at_a_time(tmp_path):
    with FileLock(tmp_path / "a.pth.lock"), pytest.raises(ValueError, match="Another process downloads"):
        fetch(Behaviour(CONTENT), tmp_path / "a.pth")


@pytest.mark.parametrize("url", ["ftp://host/file", "file:///etc/hosts", "host/file", "http://", "http://[1", ""])
def test_other_addresses_are_refused(url):
    with pytest.raises(ValueError, match="is not an address"):
        check_address(url)


def test_checksums_are_checked():
    with pytest.raises(ValueError, match="64 hexadecimal digits"):
        Expected(sha256="abc")
