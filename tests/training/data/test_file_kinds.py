# SPDX-License-Identifier: Apache-2.0
import pytest

from diffusers_mdm.training.data.file_kinds import CLIP_SUFFIXES, IMAGE_SUFFIXES, suffix_of, without_suffix


@pytest.mark.parametrize(
    ("name", "stem", "suffix"),
    [
        ("a/b.PNG", "a/b", "png"),
        ("a.d/b", "a.d/b", ""),
        ("b.c.jpg", "b.c", "jpg"),
        (".hidden", ".hidden", ""),
        ("b.", "b.", ""),
        ("", "", ""),
    ],
)
def test_the_suffix_is_what_follows_the_last_dot(name, stem, suffix):
    assert (without_suffix(name), suffix_of(name)) == (stem, suffix)


def test_suffixes_are_spelled_as_they_are_looked_up():
    for suffixes in (IMAGE_SUFFIXES, CLIP_SUFFIXES):
        assert len(set(suffixes)) == len(suffixes)
        assert all(suffix_of(f"x.{suffix.upper()}") == suffix for suffix in suffixes)
