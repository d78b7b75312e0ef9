# SPDX-License-Identifier: Apache-2.0
"""How many pictures may be left out, and which they were."""

import logging
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from accelerate.utils import gather_object

logger = logging.getLogger(__name__)

NAMED_IN_ERROR = 10
LONGEST_SHOWN = 40  # characters


class UnusableSampleError(ValueError):
    """A picture or clip that cannot be trained on; the message says why."""


class Skip(NamedTuple):
    """A sample that could not be used: where it is, and why."""

    name: str
    reason: str


def shown(value: object) -> str:
    """A value from a data set as a reason spells it: short, whatever it is, even if it holds itself."""
    if value is None or isinstance(value, (bool, float)) or (isinstance(value, int) and abs(value) < 10**18):
        return repr(value)
    if isinstance(value, (str, bytes)):
        return repr(value[:LONGEST_SHOWN]) + ("" if len(value) <= LONGEST_SHOWN else " …")
    return f"of the type {type(value).__name__}"


class SkipBudget:
    """The samples that this process has met and could not use; each is logged and counted once.

    A few broken pictures are normal in large sets, many mean that something is wrong: over the limit the run stops
    and names them. The limit holds in every process, for what it meets itself from the start of the stage on; what is
    reported is the number of all processes (`count_everywhere`).

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

    @staticmethod
    def count_everywhere(budgets: Sequence["SkipBudget"]) -> int:
        """How many samples all processes together could not use, each counted once; every process has to call it.

        Args:
            budgets: those of this process.
        """
        names = {name for budget in budgets for name in budget.reasons}
        return len({name for found in gather_object([sorted(names)]) for name in found})

    def _explanation(self) -> str:
        named = "; ".join(f"{name}: {reason}" for name, reason in list(self.reasons.items())[:NAMED_IN_ERROR])
        more = "" if len(self) <= NAMED_IN_ERROR else f"; and {len(self) - NAMED_IN_ERROR} more"
        return (
            f"{len(self)} pictures could not be used, and `max_skipped_images` allows {self.limit}. Repair or remove "
            f"them, or raise the limit. They are: {named}{more}."
        )
