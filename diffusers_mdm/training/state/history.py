# SPDX-License-Identifier: Apache-2.0
"""The history of a run, one JSON object per line, from which curves and the model card are made."""

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

    `step` and `images` count from the start of the run, over all stages and processes. Floats are written exactly;
    those that are not finite are written as null. A process that is killed while writing leaves at most an incomplete
    last line, which is ignored and overwritten. Only one process writes.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)

    def add(self, step: int, images: int, stage: str, **values: float) -> None:
        """Append a line, in a single write.

        Raises:
            OSError: if the line cannot be written, e.g. because the disk is full; earlier lines are not changed.
        """
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        self._append({"step": step, "images": images, "stage": stage, **finite})

    def begin(self, step: int, images: int, stage: str, settings: Mapping[str, object]) -> None:
        """Append a line with the settings of a stage from here on, as `{..., "settings": {...}}`.

        Raises:
            OSError: as for `add`.
        """
        self._append({"step": step, "images": images, "stage": stage, "settings": dict(settings)})

    def _append(self, entry: dict[str, Any]) -> None:
        line = json.dumps(entry, allow_nan=False) + "\n"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "a+b", buffering=0) as file:
            end = _end_of_whole_lines(file, file.seek(0, os.SEEK_END))
            file.truncate(end)
            data = line.encode()
            if file.write(data) != len(data):
                file.truncate(end)
                raise OSError(f"Only a part of a line could be written to {self.path}; is the disk full?")

    def read(self) -> list[dict[str, Any]]:
        """Return all lines, oldest first; none if there is no file. Damaged lines are skipped with a warning."""
        if not self.path.exists():
            return []
        text = self.path.read_bytes().decode("utf-8", errors="replace")
        whole, _, torn = text.rpartition("\n")
        if torn:
            logger.warning("%s ends with an incomplete line, which is ignored.", self.path)
        entries = []
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:
                entry = None
            if isinstance(entry, dict) and "step" in entry:
                entries.append(entry)
            else:
                logger.warning("Line %d of %s is damaged and ignored.", number, self.path)
        return entries

    def cut_after(self, step: int) -> None:
        """Remove lines after `step`: a run that resumes from a checkpoint writes them again."""
        entries = self.read()
        kept = [entry for entry in entries if entry["step"] <= step]
        if len(kept) == len(entries):
            return
        self._replace("".join(json.dumps(entry) + "\n" for entry in kept).encode())

    def restore(self, saved: Path, step: int) -> None:
        """Restore the history of a checkpoint.

        Args:
            saved: the history in the checkpoint; if there is none, as in older checkpoints, this one is cut.
            step: step of the checkpoint.
        """
        if saved.exists() and saved.read_bytes() != (self.path.read_bytes() if self.path.exists() else b""):
            self._replace(saved.read_bytes())
        self.cut_after(step)

    def _replace(self, content: bytes) -> None:
        beside = self.path.with_name(f".unfinished-{self.path.name}")
        beside.write_bytes(content)
        os.replace(beside, self.path)


def _end_of_whole_lines(file: io.FileIO, size: int) -> int:
    """Return the position after the last line break of an open file of `size` bytes."""
    end = size
    while end > 0:
        begin = max(0, end - 4096)
        file.seek(begin)
        found = file.read(end - begin).rfind(b"\n")
        if found >= 0:
            return int(begin + found + 1)
        end = begin
    return 0
