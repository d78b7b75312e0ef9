# SPDX-License-Identifier: Apache-2.0
"""Which checkpoint a run goes on from, which it sets aside, and which make room; they hold nothing but a number."""

import json
import shutil

import pytest

from diffusers_mdm.training.state.checkpoint_folders import (
    choose_checkpoint,
    list_checkpoints,
    make_room,
    set_aside_newer,
)
from diffusers_mdm.training.state.complete_folders import complete_folder


def save(output_dir, step: int, name: str | None = None):
    with complete_folder(output_dir / (name or f"checkpoint-{step}")) as folder:
        (folder / "progress.json").write_text(json.dumps({"progress": {"total_steps": step}}))
    return output_dir / (name or f"checkpoint-{step}")


def spoil(checkpoint) -> None:
    (checkpoint / "progress.json").write_text("{}")


@pytest.fixture
def run(tmp_path):
    for step in (2, 4, 10):
        save(tmp_path, step)
    return tmp_path


def names(output_dir) -> set[str]:
    return {path.name for path in output_dir.iterdir()}


def test_checkpoints_are_listed_by_number(run):
    for name in ("checkpoint-", "checkpoint-old", "checkpoint-007", "checkpoint-²", "set-aside-checkpoint-3"):
        (run / name).mkdir()
    (run / "checkpoint-3").write_text("a file")
    (run / "checkpoint-5").symlink_to(run / "nowhere")
    assert [path.name for path in list_checkpoints(run)] == ["checkpoint-2", "checkpoint-4", "checkpoint-10"]


def test_the_newest_is_the_one_after_most_steps_whatever_it_is_called(run):
    assert choose_checkpoint(run, "latest").name == "checkpoint-10"
    (run / "checkpoint-4").rename(run / "checkpoint-9000")
    assert choose_checkpoint(run, "latest").name == "checkpoint-10"
    assert choose_checkpoint(run, "none") is None


def test_damaged_ones_are_passed_over_with_the_reason(run, caplog):
    spoil(run / "checkpoint-10")
    assert choose_checkpoint(run, "latest").name == "checkpoint-4"
    assert "checkpoint-10, which is damaged: progress.json has 2 bytes" in caplog.text
    for checkpoint in list_checkpoints(run):
        spoil(checkpoint)
    assert choose_checkpoint(run, "latest") is None


def test_an_older_one_is_taken_where_it_suits_better(run, caplog):
    def rather_the_first(checkpoint) -> str | None:
        if checkpoint.name == "checkpoint-4":
            raise ValueError("of another model")
        return None if checkpoint.name == "checkpoint-2" else "it is too far."

    assert choose_checkpoint(run, "latest", rather_the_first).name == "checkpoint-2"
    assert "Going back to checkpoint-2, since of checkpoint-10 it is too far." in caplog.text
    assert choose_checkpoint(run, "checkpoint-10", rather_the_first).name == "checkpoint-10"
    assert choose_checkpoint(run, "latest", lambda checkpoint: "it is too far.").name == "checkpoint-10"


def test_a_newest_one_that_is_refused_is_not_passed_over(run):
    def refuse(checkpoint) -> str | None:
        raise ValueError("of another model")

    with pytest.raises(ValueError, match="another model"):
        choose_checkpoint(run, "latest", refuse)


def test_names_and_paths_of_checkpoints_are_found_or_refused(run, tmp_path):
    assert choose_checkpoint(run, "checkpoint-4") == run / "checkpoint-4"
    assert choose_checkpoint(run / "other", str(run / "checkpoint-4")) == run / "checkpoint-4"
    with pytest.raises(ValueError, match=r"no checkpoint 'checkpoint-5'.*checkpoint-2, checkpoint-4, checkpoint-10"):
        choose_checkpoint(run, "checkpoint-5")
    spoil(run / "checkpoint-4")
    with pytest.raises(ValueError, match="damaged"):
        choose_checkpoint(run, "checkpoint-4")


def test_what_comes_after_is_set_aside_and_named(run, caplog):
    (run / "checkpoint-7").write_text("a file")
    (run / "checkpoint-9").symlink_to(run / "nowhere")
    moved = set_aside_newer(run, 4, run / "checkpoint-4")
    assert {path.name for path in moved} == {f"set-aside-checkpoint-{step}" for step in (7, 9, 10)}
    assert names(run) == {"checkpoint-2", "checkpoint-4", *(path.name for path in moved)}
    assert "set-aside-checkpoint-10" in caplog.text
    assert choose_checkpoint(run, "set-aside-checkpoint-10") == run / "set-aside-checkpoint-10"
    save(run, 10)
    set_aside_newer(run, 0)
    assert {"set-aside-checkpoint-10", "set-aside-checkpoint-10-2"} <= names(run)
    assert list_checkpoints(run) == []


def test_nothing_is_set_aside_where_nothing_comes_after(run, caplog):
    assert set_aside_newer(run, 10) == []
    assert set_aside_newer(run / "new", 0) == []
    assert caplog.text == ""


def test_a_source_with_another_name_stays(run):
    (run / "checkpoint-4").rename(run / "checkpoint-9000")
    set_aside_newer(run, 4, run / "checkpoint-9000")
    assert names(run) == {"checkpoint-2", "checkpoint-9000", "set-aside-checkpoint-10"}
    for step in (6, 8, 12):
        save(run, step)
        make_room(run, 2, run / "checkpoint-9000")
    assert names(run) == {"checkpoint-8", "checkpoint-9000", "checkpoint-12", "set-aside-checkpoint-10"}


@pytest.mark.parametrize(("limit", "kept"), [(None, {2, 4, 10}), (5, {2, 4, 10}), (2, {4, 10}), (1, {10})])
def test_the_newest_stay(run, limit, kept):
    make_room(run, limit)
    assert names(run) == {f"checkpoint-{step}" for step in kept}


def test_the_source_of_the_run_and_links_stay(run, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("another-disk") / "checkpoint-1"
    shutil.copytree(run / "checkpoint-2", elsewhere)
    (run / "checkpoint-1").symlink_to(elsewhere)
    (run / "checkpoint-3").symlink_to(run / "nowhere")
    make_room(run, 1, run / "checkpoint-2")
    assert names(run) == {"checkpoint-1", "checkpoint-2", "checkpoint-3", "checkpoint-10"}
    assert (elsewhere / "progress.json").is_file()


def test_a_checkpoint_that_cannot_be_removed_is_reported(run, monkeypatch, caplog):
    def refuse(*_, **__) -> None:
        raise PermissionError("not yours")

    monkeypatch.setattr(shutil, "rmtree", refuse)
    make_room(run, 2)
    assert "checkpoint-2 could not be removed: not yours" in caplog.text
