# SPDX-License-Identifier: Apache-2.0
"""Results as a file and as a table: medians with their spread, above them the machine that they belong to."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def summary(seconds: Sequence[float]) -> dict[str, float]:
    """Median, smallest and largest of several times."""
    return {"median": statistics.median(seconds), "min": min(seconds), "max": max(seconds)}


def spelled(times: Mapping[str, float]) -> str:
    """A summary in words, e.g. "1.20 s (1.18 to 1.31)"."""
    return f"{times['median']:.3g} s ({times['min']:.3g} to {times['max']:.3g})"


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows with the same keys as a table in Markdown."""
    if not rows:
        return "(nothing measured)"
    lines = [list(rows[0]), ["---"] * len(rows[0]), *([str(value) for value in row.values()] for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def report(title: str, machine: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], path: str | None) -> None:
    """Print a table under the machine, and write both as JSON where a path is given."""
    print(
        f"\n{title}\n\n{', '.join(f'{name} {value}' for name, value in machine.items())}\n\n{table(rows)}", flush=True
    )
    if path is not None:
        text = json.dumps({"title": title, "machine": machine, "rows": rows}, indent=2)
        Path(path).write_text(text + "\n", encoding="utf-8")
