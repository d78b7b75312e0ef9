# SPDX-License-Identifier: Apache-2.0
import contextlib
import dataclasses
import json
import subprocess
import sys
import threading

import pytest

from diffusers_mdm.training.state import output_lock
from diffusers_mdm.training.state.output_lock import LOCK_FILE, Holder, only_run_in

HERE = Holder.here()


@pytest.fixture
def ended() -> int:
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def write_lock(folder, **fields):
    folder.mkdir(exist_ok=True)
    holder = dataclasses.replace(HERE, **fields)
    (folder / LOCK_FILE).write_text(json.dumps(dataclasses.asdict(holder)))


def test_a_second_run_in_the_folder_is_refused(tmp_path):
    folder = tmp_path / "run"
    with only_run_in(folder):
        before = (folder / LOCK_FILE).read_text()
        refusal = rf"in use by another run \(process {HERE.pid} on .*--output_dir"
        with pytest.raises(ValueError, match=refusal), only_run_in(folder):
            pass
        assert (folder / LOCK_FILE).read_text() == before
    with only_run_in(folder):
        pass


def test_the_lock_goes_with_the_run_and_an_empty_folder_with_it(tmp_path):
    with pytest.raises(RuntimeError), only_run_in(tmp_path / "empty"):
        raise RuntimeError
    assert not (tmp_path / "empty").exists()
    with only_run_in(tmp_path / "full"):
        (tmp_path / "full" / "weights").touch()
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["weights"]


def test_the_lock_of_a_process_that_is_gone_is_taken_over(tmp_path, ended, caplog):
    write_lock(tmp_path, pid=ended)
    with only_run_in(tmp_path):
        assert json.loads((tmp_path / LOCK_FILE).read_text()) == dataclasses.asdict(HERE)
    assert f"process {ended}" in caplog.text
    assert list(tmp_path.iterdir()) == []


def test_a_later_process_with_the_same_number_is_another_one(tmp_path):
    write_lock(tmp_path, started=HERE.started - 3600)
    with only_run_in(tmp_path):
        assert (tmp_path / LOCK_FILE).exists()


def test_of_a_process_on_another_machine_nothing_is_known(tmp_path, ended):
    write_lock(tmp_path, host="elsewhere", pid=ended)
    with pytest.raises(ValueError, match=rf"on elsewhere\).*remove .*{LOCK_FILE}"), only_run_in(tmp_path):
        pass
    assert json.loads((tmp_path / LOCK_FILE).read_text())["host"] == "elsewhere"


@pytest.mark.parametrize("contents", ["", "{", '{"pid": "x"}', "[1]", '{"host": 1, "pid": null, "started": 0}'])
def test_a_lock_that_cannot_be_read_is_named(tmp_path, contents, monkeypatch):
    monkeypatch.setattr(output_lock, "SETTLE_SECONDS", 0.01)
    (tmp_path / LOCK_FILE).write_text(contents)
    with pytest.raises(ValueError, match=rf"another run, .*remove .*{LOCK_FILE}"), only_run_in(tmp_path):
        pass
    assert (tmp_path / LOCK_FILE).read_text() == contents


@pytest.mark.parametrize("stale", [False, True])
def test_of_many_at_once_one_gets_in(tmp_path, ended, stale):
    """Into a free folder, and into one whose lock all of them find to be that of a process that is gone."""
    if stale:
        write_lock(tmp_path, pid=ended)
    holders = [dataclasses.replace(HERE, started=HERE.started + number) for number in range(4)]
    entered = []

    def enter(holder):
        with contextlib.suppress(ValueError):
            output_lock._take(tmp_path / LOCK_FILE, holder)
            entered.append(holder)

    threads = [threading.Thread(target=enter, args=(holder,)) for holder in holders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [dataclasses.asdict(holder) for holder in entered] == [json.loads((tmp_path / LOCK_FILE).read_text())]
