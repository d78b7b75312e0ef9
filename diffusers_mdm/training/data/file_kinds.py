# SPDX-License-Identifier: Apache-2.0
"""What the last part of a file's name says: which files of folders and shards are pictures, and which are clips."""

# In the order in which they are looked for where a sample has several.
PICTURE_SUFFIXES = (
    *("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif", "jp2"),
    *("jpe", "jfif", "mpo", "apng", "ppm", "pgm", "pbm", "pnm", "j2k", "tga", "ico"),
)
CLIP_SUFFIXES = (
    *("mp4", "webm", "mkv", "mov", "avi", "m4v", "mpg", "mpeg", "ts", "ogv", "flv", "wmv"),
    *("gif", "webp", "avif", "apng"),
)


def suffix_of(name: str) -> str:
    """The part after the last dot of a file's name, in lower case; "" without one."""
    last = name.rpartition("/")[2]
    stem, dot, suffix = last.rpartition(".")
    return suffix.lower() if stem and dot else ""


def without_suffix(name: str) -> str:
    """The name, with its folders, up to the dot before its suffix."""
    suffix = suffix_of(name)
    return name[: -len(suffix) - 1] if suffix else name
