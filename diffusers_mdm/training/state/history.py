# SPDX-License-Identifier: Apache-2.0
"""The numbers of a run, one JSON object a line: what curves, cards and decisions are made from."""

import io
import json
import logging
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

FILE_NAME = "history.jsonl"


class History:
    """A file of `{"step": ..., "images": ..., "stage": ..., "loss/level_0": ..., ...}` lines, oldest first.

    `step` and `images` count from the start of the run, over all stages and processes. Floats are written with all
    their digits and come back bit for bit; one that is not finite is written as null. A process that dies while it
    writes leaves at most a torn last line, which is not read and makes room for the next one. One process writes.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)

    def add(self, step: int, images: int, stage: str, **values: float) -> None:
        """Append one line, in one write.

        Raises:
            OSError: if the line cannot be written, e.g. because the disk is full; earlier lines are untouched.
        """
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        self._append({"step": step, "images": images, "stage": stage, **finite})

    def begin(self, step: int, images: int, stage: str, settings: Mapping[str, object]) -> None:
        """Append a line that says how a stage is trained from here on, as `{..., "settings": {...}}`.

        Raises:
            OSError: as for `add`.
        """
        self._append({"step": step, "images": images, "stage": stage, "settings": dict(settings)})

    def _append(self, row: dict[str, Any]) -> None:
        line = json.dumps(row, allow_nan=False) + "\n"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "a+b", buffering=0) as file:
            end = _end_of_whole_lines(file, file.seek(0, os.SEEK_END))
            file.truncate(end)
            data = line.encode()
            if file.write(data) != len(data):
                file.truncate(end)
                raise OSError(f"Only a part of a line could be written to {self.path}; is the disk full?")

    def read(self) -> list[dict[str, Any]]:
        """All lines, oldest first; none if there is no file. Damaged lines are named in a warning and left out."""
        if not self.path.exists():
            return []
        text = self.path.read_bytes().decode("utf-8", errors="replace")
        whole, _, torn = text.rpartition("\n")
        if torn:
            logger.warning("%s ends with a torn line, which is left out.", self.path)
        rows = []
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                row = None
            if isinstance(row, dict) and "step" in row:
                rows.append(row)
            else:
                logger.warning("Line %d of %s is damaged and left out.", number, self.path)
        return rows

    def cut_after(self, step: int) -> None:
        """Forget what came after `step`: a run that goes on from a checkpoint measures it again."""
        rows = self.read()
        kept = [row for row in rows if row["step"] <= step]
        if len(kept) == len(rows):
            return
        self._replace("".join(json.dumps(row) + "\n" for row in kept).encode())

    def restore(self, saved: Path, step: int) -> None:
        """Go back to what a checkpoint knew.

        Args:
            saved: the history as it was then; where there is none, as in older checkpoints, this one is cut.
            step: the checkpoint's.
        """
        if saved.exists() and saved.read_bytes() != (self.path.read_bytes() if self.path.exists() else b""):
            self._replace(saved.read_bytes())
        self.cut_after(step)

    def _replace(self, content: bytes) -> None:
        beside = self.path.with_name(f".unfinished-{self.path.name}")
        beside.write_bytes(content)
        os.replace(beside, self.path)


def _end_of_whole_lines(file: io.FileIO, size: int) -> int:
    """Position after the last line break of an open file of `size` bytes."""
    end = size
    while end > 0:
        begin = max(0, end - 4096)
        file.seek(begin)
        found = file.read(end - begin).rfind(b"\n")
        if found >= 0:
            return int(begin + found + 1)
        end = begin
    return 0
