# SPDX-License-Identifier: Apache-2.0
"""The checkpoint folders of a run: which there are, which one to go on from, and which make room.

A run works on one line of checkpoints: what it resumed from, and what it wrote since. Those with a higher number,
which belong to another continuation, are set aside before it writes its first one. So the highest numbers are always
the newest of the run.
"""

import json
import logging
import os
import re
from collections.abc import Callable
from pathlib import Path

from .complete_folders import damage, remove

logger = logging.getLogger(__name__)

PREFIX = "checkpoint-"
PROGRESS_FILE = "progress.json"
SET_ASIDE = "set-aside-"
_NAME = re.compile(rf"{PREFIX}(0|[1-9][0-9]*)")


def number_of(path: Path) -> int | None:
    """The number in a checkpoint's name; None if that is no name of a checkpoint."""
    match = _NAME.fullmatch(path.name)
    return None if match is None else int(match[1])


def list_checkpoints(output_dir: Path) -> list[Path]:
    """Folders (and links to folders) with a checkpoint's name, lowest number first."""
    found = [(number, path) for path in output_dir.glob(f"{PREFIX}*") if (number := number_of(path)) is not None]
    return [path for _, path in sorted(found) if path.is_dir()]


def steps_in(checkpoint: Path) -> int | None:
    """Steps that a checkpoint says it was saved after; None if that cannot be read."""
    try:
        report = json.loads((checkpoint / PROGRESS_FILE).read_text(encoding="utf-8"))
        steps = report["progress"]["total_steps"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return steps if type(steps) is int else None


def choose_checkpoint(
    output_dir: Path, wanted: str, why_rather_older: Callable[[Path], str | None] = lambda checkpoint: None
) -> Path | None:
    """The checkpoint to go on from: the newest sound one for "latest", none for "none", or the one that is named.

    The newest is the one saved after most steps, whatever somebody has called it. Damaged ones are passed over with a
    message. A name is looked up in `output_dir`, then as a path.

    Args:
        output_dir: of the run.
        wanted: "latest", "none", a checkpoint's name, or a folder.
        why_rather_older: says why "latest" should take an older one than this, if there is one for which it says None.

    Raises:
        ValueError: the named one does not exist or is damaged; or what `why_rather_older` raises for the newest.
    """
    if wanted == "none":
        return None
    if wanted == "latest":
        return _newest(output_dir, why_rather_older)
    for checkpoint in (output_dir / wanted, Path(wanted)):
        if checkpoint.is_dir():
            problem = damage(checkpoint)
            if problem is not None:
                raise ValueError(f"{checkpoint} is damaged ({problem}); resume from another one, or from 'latest'.")
            return checkpoint
    there = ", ".join(path.name for path in list_checkpoints(output_dir)) or "none"
    raise ValueError(f"There is no checkpoint {wanted!r}, in {output_dir} or as a path; checkpoints there: {there}.")


def _newest(output_dir: Path, why_rather_older: Callable[[Path], str | None]) -> Path | None:
    """The sound checkpoint of most steps, or the first older one that suits better; None if no checkpoint is sound."""
    found = []
    for path in list_checkpoints(output_dir):
        number, steps = number_of(path), steps_in(path)
        found.append((number if steps is None else steps, steps == number, path))
    newest, reason = None, None
    for _, _, checkpoint in sorted(found, reverse=True):
        problem = damage(checkpoint)
        if problem is not None:
            logger.warning("Skipping %s, which is damaged: %s.", checkpoint, problem)
        elif newest is None:
            newest, reason = checkpoint, why_rather_older(checkpoint)
            if reason is None:
                return newest
        elif _suits(checkpoint, why_rather_older):
            logger.warning("Going back to %s, since of %s %s", checkpoint.name, newest.name, reason)
            return checkpoint
    return newest


def _suits(checkpoint: Path, why_not: Callable[[Path], str | None]) -> bool:
    try:
        return why_not(checkpoint) is None
    except ValueError:
        return False


def set_aside_newer(output_dir: Path, step: int, source: Path | None = None) -> list[Path]:
    """Rename all checkpoints after `step`, whose names a run that goes on from there will use; `source` stays.

    Args:
        output_dir: of the run.
        step: the run has done so many.
        source: the checkpoint that it goes on from.

    Returns:
        What they are called now: "set-aside-checkpoint-8", or "set-aside-checkpoint-8-2" if there was one.
    """
    kept = None if source is None else source.resolve()
    moved = []
    # Files and dangling links count, too: they would stand in the way.
    for path in sorted(output_dir.glob(f"{PREFIX}*")):
        number = number_of(path)
        if number is None or number <= step or path.resolve() == kept:
            continue
        target, copies = path.with_name(f"{SET_ASIDE}{path.name}"), 1
        while os.path.lexists(target):
            copies += 1
            target = path.with_name(f"{SET_ASIDE}{path.name}-{copies}")
        os.rename(path, target)
        moved.append(target)
    if moved:
        logger.warning(
            "Going on from step %d: %s after that set aside, as %s in %s. Nothing deletes %s; resume from one with "
            "--resume_from_checkpoint %s.",
            step,
            "what is" if len(moved) == 1 else "those",
            ", ".join(path.name for path in moved),
            output_dir,
            "it" if len(moved) == 1 else "them",
            moved[-1].name,
        )
    return moved


def make_room(output_dir: Path, limit: int | None, source: Path | None = None) -> None:
    """Remove the oldest checkpoints, such that `limit` are left; never links, nor what the run has resumed from.

    A checkpoint that cannot be removed is reported, and stays.
    """
    if limit is None:
        return
    kept = None if source is None else source.resolve()
    own = [path for path in list_checkpoints(output_dir) if not path.is_symlink() and path.resolve() != kept]
    for old in own[: -max(1, limit)]:
        try:
            remove(old)
        except OSError as error:
            logger.warning("The old checkpoint %s could not be removed: %s", old, error)
