# SPDX-License-Identifier: Apache-2.0
"""Captions as they enter from files that nobody vouches for: text that tokenizers, trackers and image files can take.

Every caption passes through here once, where it is read, so that nothing behind this has to expect half a character,
a NUL, or a book. Ordinary captions stay as they are, to the letter.
"""

import re
from typing import Any

from ..skip_budget import shown

MAX_CHARACTERS = 16_384  # of a caption; a text encoder reads the first few hundred words at most
_SURROGATE = re.compile("[\ud800-\udfff]")
_MARKS = re.compile("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff]")  # direction of writing, byte order
# Control characters except tab and line breaks, and the separators that some programs take for line breaks.
_CONTROLS = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028\u2029]")
_NO_CHARACTERS = re.compile("[\ufdd0-\ufdef\ufffe\uffff]")


def clean_caption(text: str) -> str:
    """The caption in a form that any tokenizer, tracker, model card or PNG text chunk takes.

    - Half a character (a lone surrogate) and code points that are no characters become U+FFFD; two halves are joined.
    - Control characters, NUL among them, become spaces; tab and line breaks stay.
    - Marks that turn the direction of writing, and byte order marks, go.
    - What is longer than `MAX_CHARACTERS` is cut there.
    """
    text = text[:MAX_CHARACTERS]
    if text.isascii() and text.isprintable():
        return text
    if _SURROGATE.search(text):
        text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return _NO_CHARACTERS.sub("\ufffd", _CONTROLS.sub(" ", _MARKS.sub("", text)))


def clean_captions(value: Any) -> str | list[str]:
    """One caption, or several of which every epoch sees one, as they are stored; none at all is the empty caption.

    Raises:
        ValueError: if it is neither text nor a list of texts.
    """
    if value is None:
        return ""
    if isinstance(value, str):
        return clean_caption(value)
    if isinstance(value, (list, tuple)) and all(entry is None or isinstance(entry, str) for entry in value):
        return [clean_caption(entry or "") for entry in value]
    raise ValueError(f"a caption must be text, or a list of texts of which every epoch sees one; it is {shown(value)}")
