# SPDX-License-Identifier: Apache-2.0
"""Counting samples that cannot be used, with a limit."""

import logging
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from accelerate.utils import gather_object

logger = logging.getLogger(__name__)

NAMED_IN_ERROR = 10
LONGEST_SHOWN = 40  # characters


class UnusableSampleError(ValueError):
    """An image or clip that cannot be used; the message says why."""


class Skip(NamedTuple):
    """A sample that could not be used: its name, and why."""

    name: str
    reason: str


def shown(value: object) -> str:
    """Return a short text for any value from a data set, even if it contains itself."""
    if value is None or isinstance(value, (bool, float)) or (isinstance(value, int) and abs(value) < 10**18):
        return repr(value)
    if isinstance(value, (str, bytes)):
        return repr(value[:LONGEST_SHOWN]) + ("" if len(value) <= LONGEST_SHOWN else " …")
    return f"of the type {type(value).__name__}"


class SkipBudget:
    """The samples that this process encountered and could not use; each is logged and counted once.

    A few damaged images are normal in large data sets, but many mean that something is wrong: above the limit the run
    ends and names them. The limit applies to each process separately, to the samples of the current stage; the number
    that is reported is over all processes (`count_everywhere`).

    Attributes:
        limit: maximum number of samples.
        reasons: reason for each skipped sample, by name.
    """

    def __init__(self, limit: int):
        self.limit = limit
        self.reasons: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self.reasons)

    def add(self, skips: Iterable[Skip]) -> None:
        """Add skipped samples.

        Raises:
            ValueError: if there are now more than the limit; the message names the first ones and the reasons.
        """
        for skip in skips:
            if skip.name in self.reasons:
                continue
            self.reasons[skip.name] = skip.reason
            logger.warning("Skipped %s: %s.", skip.name, skip.reason)
            if len(self) > self.limit:
                raise ValueError(self._explanation())

    @staticmethod
    def count_everywhere(budgets: Sequence["SkipBudget"]) -> int:
        """Return how many samples all processes could not use, each counted once; every process must call it.

        Args:
            budgets: the budgets of this process.
        """
        names = {name for budget in budgets for name in budget.reasons}
        return len({name for found in gather_object([sorted(names)]) for name in found})

    def _explanation(self) -> str:
        named = "; ".join(f"{name}: {reason}" for name, reason in list(self.reasons.items())[:NAMED_IN_ERROR])
        more = "" if len(self) <= NAMED_IN_ERROR else f"; and {len(self) - NAMED_IN_ERROR} more"
        return (
            f"{len(self)} samples could not be used, but `max_skipped_images` allows {self.limit}. Repair or remove "
            f"them, or raise the limit. They are: {named}{more}."
        )
