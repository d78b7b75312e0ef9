# SPDX-License-Identifier: Apache-2.0
"""Results as a file and as a table: medians with their spread, above them the machine that they belong to."""

from __future__ import annotations

import contextlib
import json
import statistics
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch


def summary(seconds: Sequence[float]) -> dict[str, float]:
    """Median, smallest and largest of several times."""
    return {"median": statistics.median(seconds), "min": min(seconds), "max": max(seconds)}


def spelled(times: Mapping[str, float]) -> str:
    """A summary in words, e.g. "1.20 s (1.18 to 1.31)"."""
    return f"{times['median']:.3g} s ({times['min']:.3g} to {times['max']:.3g})"


def cell(value: Any) -> str:
    """A value of a row as a table shows it: times as `spelled`, numbers with three digits."""
    if isinstance(value, Mapping):
        return spelled(value)
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None) -> str:
    """Rows as a table in Markdown; a row may lack values that others have.

    Args:
        rows: with their values by column.
        columns: those that are shown, if any row has them; None for all.
    """
    if not rows:
        return "(nothing measured)"
    found = list(dict.fromkeys(name for row in rows for name, value in row.items() if value is not None))
    names = found if columns is None else [name for name in columns if name in found]
    lines = [names, ["---"] * len(names), *([cell(row.get(name, "")) for name in names] for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


class Results:
    """Rows of a benchmark, written as JSON after each of them, so that a run that is cut off leaves what it measured.

    Args:
        title: what is measured.
        machine: what it is measured on.
        path: the JSON file; None to write none.
        columns: what the printed table shows, see `table`; the file has everything.
    """

    def __init__(
        self, title: str, machine: Mapping[str, Any], path: str | None, columns: Sequence[str] | None = None
    ) -> None:
        self.title, self.machine, self.path, self.columns = title, dict(machine), path, columns
        self.rows: list[dict[str, Any]] = []
        self.failed = False

    def add(self, labels: Mapping[str, Any], measure: Callable[[], Mapping[str, Any]]) -> None:
        """Measure a row and write it.

        Args:
            labels: the beginning of the row.
            measure: returns the rest.
        """
        with self.attempt(labels):
            self._append({**labels, **measure()})

    @contextlib.contextmanager
    def attempt(self, labels: Mapping[str, Any]) -> Iterator[None]:
        """If the block fails, write a row with the reason, so that what comes after it is still measured.

        Args:
            labels: the beginning of that row.
        """
        try:
            yield
        except torch.OutOfMemoryError:
            self._append({**labels, "failed": "out of memory"})
        except Exception as error:  # noqa: BLE001 (the other rows are measured)
            traceback.print_exc()
            self.failed = True
            self._append({**labels, "failed": f"{type(error).__name__}: {error}"[:500]})

    def _append(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        print("; ".join(f"{name} {cell(value)}" for name, value in row.items()), file=sys.stderr, flush=True)
        if self.path is not None:
            text = json.dumps({"title": self.title, "machine": self.machine, "rows": self.rows}, indent=2)
            Path(self.path).write_text(text + "\n", encoding="utf-8")

    def finish(self) -> None:
        """Print the table; exit with status 1 if a row failed for want of something other than memory."""
        described = ", ".join(f"{name} {cell(value)}" for name, value in self.machine.items())
        print(f"\n{self.title}\n\n{described}\n\n{table(self.rows, self.columns)}", flush=True)
        if self.failed:
            raise SystemExit(1)
