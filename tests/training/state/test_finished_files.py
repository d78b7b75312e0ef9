# SPDX-License-Identifier: Apache-2.0
import os

import pytest

from diffusers_mdm.training.state.complete_folders import finish_interrupted
from diffusers_mdm.training.state.finished_files import INDEX_FILE, finish_moving, finished_files

PARTS = ("text_encoder", "unet")


def write_pipeline(folder, words: str) -> None:
    for part in PARTS:
        (folder / part).mkdir()
        (folder / part / "weights").write_text(words)
    (folder / INDEX_FILE).write_text(words)


def pipeline_in(folder) -> set[str] | None:
    """What the parts of a pipeline say; None for a folder that is no pipeline."""
    if not (folder / INDEX_FILE).exists():
        return None
    return {(folder / INDEX_FILE).read_text(), *((folder / part / "weights").read_text() for part in PARTS)}


def names(folder) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.fixture
def folder(tmp_path):
    """An output folder with a finished pipeline and other things."""
    with finished_files(tmp_path) as beside:
        write_pipeline(beside, "old")
    (tmp_path / "README.md").write_text("mine")
    return tmp_path


def test_entries_are_replaced_and_others_stay(folder):
    with finished_files(folder) as beside:
        write_pipeline(beside, "new")
        assert pipeline_in(folder) == {"old"}
    assert pipeline_in(folder) == {"new"}
    assert names(folder) == {*PARTS, INDEX_FILE, "README.md"}


def test_a_block_that_fails_changes_nothing(folder):
    def write_until_the_disk_is_full() -> None:
        with finished_files(folder) as beside:
            write_pipeline(beside, "new")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk"):
        write_until_the_disk_is_full()
    assert pipeline_in(folder) == {"old"}
    assert names(folder) == {*PARTS, INDEX_FILE, "README.md"}


class KilledError(BaseException):
    """Stands in for the end of the process."""


@pytest.mark.parametrize("moves", range(8))
def test_wherever_a_swap_is_interrupted_no_mixture_loads_and_the_next_start_completes_it(folder, monkeypatch, moves):
    replace, done = os.replace, []

    def replace_until_killed(source, target) -> None:
        if len(done) == moves:
            raise KilledError
        done.append(target)
        replace(source, target)

    def write() -> None:
        with finished_files(folder) as beside:
            write_pipeline(beside, "new")

    monkeypatch.setattr(os, "replace", replace_until_killed)
    with pytest.raises(KilledError):
        write()
    monkeypatch.setattr(os, "replace", replace)
    assert pipeline_in(folder) in (None, {"old"}, {"new"})
    finish_interrupted(folder)
    finish_moving(folder)
    assert pipeline_in(folder) == ({"old"} if moves == 0 else {"new"})
    assert names(folder) == {*PARTS, INDEX_FILE, "README.md"}


def test_the_first_pipeline_of_a_folder_is_no_different(tmp_path):
    with finished_files(tmp_path / "new") as beside:
        (beside / "weights.safetensors").write_text("x")
    assert names(tmp_path / "new") == {"weights.safetensors"}
    finish_moving(tmp_path / "new")
    finish_moving(tmp_path / "missing")
