# SPDX-License-Identifier: Apache-2.0
"""File suffixes: which files of folders and shards are images, and which are clips."""

# In order of preference, for samples that have several.
IMAGE_SUFFIXES = (
    *("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif", "jp2"),
    *("jpe", "jfif", "mpo", "apng", "ppm", "pgm", "pbm", "pnm", "j2k", "tga", "ico"),
)
CLIP_SUFFIXES = (
    *("mp4", "webm", "mkv", "mov", "avi", "m4v", "mpg", "mpeg", "ts", "ogv", "flv", "wmv"),
    *("gif", "webp", "avif", "apng"),
)


def suffix_of(name: str) -> str:
    """Return the part after the last dot of a file's name, in lower case; "" if there is none."""
    last = name.rpartition("/")[2]
    stem, dot, suffix = last.rpartition(".")
    return suffix.lower() if stem and dot else ""


def without_suffix(name: str) -> str:
    """Return the name, including folders, up to the dot before its suffix."""
    suffix = suffix_of(name)
    return name[: -len(suffix) - 1] if suffix else name
