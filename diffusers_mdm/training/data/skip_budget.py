# SPDX-License-Identifier: Apache-2.0
"""How many pictures may be left out, and which they were."""

import logging
from collections.abc import Iterable
from typing import NamedTuple

logger = logging.getLogger(__name__)

NAMED_IN_ERROR = 10


class Skip(NamedTuple):
    """A sample that could not be used: where it is, and why."""

    name: str
    reason: str


class SkipBudget:
    """The samples that this process has met and could not use; each is logged and counted once.

    A few broken pictures are normal in large sets, many mean that something is wrong: over the limit the run stops
    and names them. Every process counts what it meets itself, from the start of the command.

    Attributes:
        limit: so many are allowed.
        reasons: reason of each skipped sample, by name.
    """

    def __init__(self, limit: int):
        self.limit = limit
        self.reasons: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self.reasons)

    def add(self, skips: Iterable[Skip]) -> None:
        """Count samples that were skipped.

        Raises:
            ValueError: if they are more than the limit; the message names the first ones and says why.
        """
        for skip in skips:
            if skip.name in self.reasons:
                continue
            self.reasons[skip.name] = skip.reason
            logger.warning("Skipped %s: %s.", skip.name, skip.reason)
            if len(self) > self.limit:
                raise ValueError(self._explanation())

    def _explanation(self) -> str:
        named = "; ".join(f"{name}: {reason}" for name, reason in list(self.reasons.items())[:NAMED_IN_ERROR])
        more = "" if len(self) <= NAMED_IN_ERROR else f"; and {len(self) - NAMED_IN_ERROR} more"
        return (
            f"{len(self)} pictures could not be used, and `max_skipped_images` allows {self.limit}. Repair or remove "
            f"them, or raise the limit. They are: {named}{more}."
        )
