# SPDX-License-Identifier: Apache-2.0
import json
import os
import subprocess
import sys

import pytest

from diffusers_mdm.training.state.complete_folders import MANIFEST, complete_folder, damage, finish_interrupted


@pytest.fixture
def folder(tmp_path):
    final = tmp_path / "checkpoint-3"
    with complete_folder(final) as beside:
        assert not final.exists()
        (beside / "unet").mkdir()
        (beside / "unet" / "weights").write_bytes(bytes(range(256)) * 50)
        (beside / "progress.json").write_text("{}")
    return final


def test_a_complete_folder_is_sound(folder):
    assert damage(folder) is None
    assert sorted(path.name for path in folder.iterdir()) == [MANIFEST, "progress.json", "unet"]
    assert [path.name for path in folder.parent.iterdir()] == ["checkpoint-3"]


def test_a_block_that_fails_leaves_the_old_folder(folder):
    def write_until_the_disk_is_full() -> None:
        with complete_folder(folder) as beside:
            (beside / "progress.json").write_text("new")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk"):
        write_until_the_disk_is_full()
    assert (folder / "progress.json").read_text() == "{}"
    assert damage(folder) is None
    assert [path.name for path in folder.parent.iterdir()] == ["checkpoint-3"]


def test_writing_again_replaces(folder):
    with complete_folder(folder) as beside:
        (beside / "other").write_text("x")
    assert sorted(path.name for path in folder.iterdir()) == [MANIFEST, "other"]


def truncate(folder):
    os.truncate(folder / "unet" / "weights", 100)


def flip_a_bit(folder):
    data = bytearray((folder / "unet" / "weights").read_bytes())
    data[77] ^= 1
    (folder / "unet" / "weights").write_bytes(data)


def remove_file(folder):
    (folder / "unet" / "weights").unlink()


def remove_manifest(folder):
    (folder / MANIFEST).unlink()


def spoil_manifest(folder):
    (folder / MANIFEST).write_text("{")


def empty_manifest_entry(folder):
    (folder / MANIFEST).write_text(json.dumps({"progress.json": None}))


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (truncate, "100 bytes instead of 12800"),
        (flip_a_bit, "unet/weights have changed"),
        (remove_file, "unet/weights is missing"),
        (remove_manifest, f"{MANIFEST} is missing"),
        (spoil_manifest, "cannot be read"),
        (empty_manifest_entry, "cannot be read"),
    ],
    ids=lambda part: getattr(part, "__name__", ""),
)
def test_damage_is_found_and_named(folder, spoil, named):
    spoil(folder)
    assert named in damage(folder)


WRITER = """
import sys, time
from pathlib import Path
from diffusers_mdm.training.state.complete_folders import complete_folder
with complete_folder(Path(sys.argv[1])) as beside:
    (beside / "weights").write_bytes(b"x" * 1000)
    print("writing", flush=True)
    time.sleep(60)
"""


def test_a_process_that_is_killed_while_it_writes_leaves_the_old_folder(folder):
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "writing\n"
    process.kill()
    process.wait()
    names = sorted(path.name for path in folder.parent.iterdir())
    assert names == [".unfinished-checkpoint-3", "checkpoint-3"]
    assert damage(folder) is None
    finish_interrupted(folder.parent)
    assert [path.name for path in folder.parent.iterdir()] == ["checkpoint-3"]


@pytest.mark.parametrize("in_the_way", ["file", "dangling link", "link to a folder"])
def test_whatever_has_the_name_is_replaced_and_links_are_not_followed(tmp_path, in_the_way):
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "mine").mkdir(parents=True)
    final = tmp_path / "checkpoint-3"
    if in_the_way == "file":
        final.write_text("x")
    else:
        final.symlink_to(tmp_path / "nowhere" if in_the_way == "dangling link" else elsewhere)
    with complete_folder(final) as beside:
        (beside / "weights").write_text("x")
    assert damage(final) is None
    assert not final.is_symlink()
    assert (elsewhere / "mine").is_dir()


def test_a_swap_that_was_interrupted_is_completed_or_undone(folder):
    """Between the two renames the name is free; what is complete then gets it."""
    parent = folder.parent
    folder.rename(parent / ".replaced-checkpoint-3")
    finish_interrupted(parent)
    assert damage(folder) is None
    with complete_folder(parent / "next") as beside:
        (beside / "weights").write_text("new")
    folder.rename(parent / ".replaced-checkpoint-3")
    (parent / "next").rename(parent / ".unfinished-checkpoint-3")
    finish_interrupted(parent)
    assert (folder / "weights").read_text() == "new"
    assert [path.name for path in parent.iterdir()] == ["checkpoint-3"]
