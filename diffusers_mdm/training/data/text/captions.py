# SPDX-License-Identifier: Apache-2.0
"""Cleaning of captions from untrusted files, so that tokenizers, trackers and image files can handle them.

Every caption is cleaned once, when it is read, so that later code never encounters a lone surrogate, a NUL or a whole
book. Ordinary captions are not changed at all.
"""

import re
from typing import Any

from ..skip_budget import shown

MAX_CHARACTERS = 16_384  # maximum length of a caption; text encoders read a few hundred words at most
_SURROGATE = re.compile("[\ud800-\udfff]")
_MARKS = re.compile("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff]")  # writing direction, byte order
# Control characters except tab and line breaks, and separators that some programs treat as line breaks.
_CONTROLS = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028\u2029]")
_NO_CHARACTERS = re.compile("[\ufdd0-\ufdef\ufffe\uffff]")


def clean_caption(text: str) -> str:
    """Return the caption in a form that any tokenizer, tracker, model card or PNG text chunk accepts.

    - Lone surrogates and code points that are not characters become U+FFFD; pairs of surrogates are joined.
    - Control characters, including NUL, become spaces; tabs and line breaks are kept.
    - Marks that change the writing direction, and byte order marks, are removed.
    - Captions are cut after `MAX_CHARACTERS`.
    """
    text = text[:MAX_CHARACTERS]
    if text.isascii() and text.isprintable():
        return text
    if _SURROGATE.search(text):
        text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return _NO_CHARACTERS.sub("\ufffd", _CONTROLS.sub(" ", _MARKS.sub("", text)))


def clean_captions(value: Any) -> str | list[str]:
    """Clean a stored caption, or a list of captions of which one is used per epoch; a missing one becomes the empty
    caption.

    Raises:
        ValueError: if it is neither text nor a list of texts.
    """
    if value is None:
        return ""
    if isinstance(value, str):
        return clean_caption(value)
    if isinstance(value, (list, tuple)) and all(entry is None or isinstance(entry, str) for entry in value):
        return [clean_caption(entry or "") for entry in value]
    raise ValueError(
        f"a caption must be text, or a list of texts of which one is used per epoch; it is {shown(value)}"
    )
