# SPDX-License-Identifier: Apache-2.0
"""Paths in a data set lead to its own regular files, and nowhere else."""

import os

import pytest

from diffusers_mdm.training.data.local_files import AllowedFolders, read_file
from diffusers_mdm.training.data.skip_budget import UnusableSampleError


@pytest.fixture
def folder(tmp_path):
    data = tmp_path / "data"
    (data / "inside").mkdir(parents=True)
    (data / "inside" / "a.png").write_bytes(b"inside")
    (tmp_path / "outside.png").write_bytes(b"outside")
    (tmp_path / "data-too").mkdir()
    (tmp_path / "data-too" / "b.png").write_bytes(b"outside")
    return data


def test_files_inside_are_found_by_any_name(folder):
    (folder / "link.png").symlink_to("inside/a.png")
    allowed = AllowedFolders.of_folder(folder)
    for name in ("inside/a.png", "link.png", "inside/../link.png", str(folder / "inside" / "a.png")):
        assert allowed.find(name).read_bytes() == b"inside"


def test_a_folder_that_is_a_link_is_as_good_as_any(folder, tmp_path):
    (tmp_path / "shortcut").symlink_to(folder)
    assert AllowedFolders.of_folder(tmp_path / "shortcut").find("inside/a.png").read_bytes() == b"inside"


@pytest.mark.parametrize(
    "name", ["../outside.png", "../data-too/b.png", "/etc/hostname", "/dev/zero", "out.png", "frames"]
)
def test_files_elsewhere_are_not_opened(folder, tmp_path, name):
    (folder / "out.png").symlink_to(tmp_path / "outside.png")
    (folder / "frames").mkdir()
    (folder / "frames" / "1.png").symlink_to(tmp_path / "outside.png")
    with pytest.raises(UnusableSampleError, match=r"outside the data set|cannot be found"):
        AllowedFolders.of_folder(folder).find(name)


@pytest.mark.parametrize("name", ["missing.png", "a\0b", "circle"])
def test_files_that_are_not_there_say_so(folder, name):
    (folder / "circle").symlink_to("circle")
    with pytest.raises(UnusableSampleError, match=r"cannot be found"):
        AllowedFolders.of_folder(folder).find(name)


def test_a_data_set_of_the_hub_names_what_was_downloaded_alone(folder):
    for name in ("inside/a.png", str(folder / "inside" / "a.png"), "/dev/zero"):
        with pytest.raises(UnusableSampleError, match=r"relative|outside the data set|cannot be found"):
            AllowedFolders.of_hub().find(name)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_pipes_devices_and_folders_are_not_read(folder):
    os.mkfifo(folder / "pipe")
    for path, kind in ((folder / "pipe", "pipe"), (folder, "folder")):
        with pytest.raises(UnusableSampleError, match=f"not a regular file, but a {kind}"):
            read_file(path, 100)


@pytest.mark.skipif(not os.path.exists("/dev/zero"), reason="this system has no such device")
def test_a_device_that_never_ends_is_not_read(folder):
    (folder / "zero").symlink_to("/dev/zero")
    with pytest.raises(UnusableSampleError, match="but a device"):
        read_file(folder / "zero", 100)


def test_reads_are_bounded(folder):
    file = folder / "inside" / "a.png"
    assert read_file(file, 6) == b"inside"
    with pytest.raises(UnusableSampleError, match="larger than"):
        read_file(file, 5)
