# SPDX-License-Identifier: Apache-2.0
"""Choosing the caption to train on, where a sample has several or other columns have captions, too."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from ...seeds import derive_seed, derive_uniform

# Random streams of a sample, distinct from those of `samples.py`, of `frame_choice.py` and of the training loop.
_CAPTION_STREAM, _COLUMN_STREAM = 101, 104

Texts = str | Sequence[str]


class Captions(NamedTuple):
    """The captions of a sample.

    Attributes:
        main: its caption, or several, of which one is used per epoch.
        others: the same from other columns, by column.
    """

    main: Texts
    others: Mapping[str, Texts] = {}


@dataclass(frozen=True)
class CaptionChoice:
    """Chooses one caption of each sample.

    Attributes:
        shares: the fraction of samples that take their caption from another column, by column; the rest have the
            main caption, as do samples without a caption in the other column.
        random: choose at random; otherwise take the first of the main captions.
    """

    shares: Mapping[str, float] = field(default_factory=dict)
    random: bool = True

    def choose(self, captions: Captions, seed: int, position: int) -> str:
        """Return the caption for the sample at `position`, "" if it has none.

        Random choices depend only on (seed, position) and the number of captions.
        """
        column = self._column(seed, position) if self.random and self.shares else None
        texts = (captions.others.get(column) if column is not None else None) or captions.main
        if isinstance(texts, str):
            return texts
        if len(texts) < 2 or not self.random:
            return texts[0] if texts else ""
        return texts[derive_seed(seed, position, _CAPTION_STREAM) % len(texts)]

    def _column(self, seed: int, position: int) -> str | None:
        """Return the other column that the sample at `position` takes its caption from; None for the main one."""
        place = derive_uniform(seed, position, _COLUMN_STREAM)
        for column, share in sorted(self.shares.items()):
            place -= share
            if place < 0:
                return column
        return None
