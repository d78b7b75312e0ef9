# SPDX-License-Identifier: Apache-2.0
"""The checkpoint folders of a run: listing them, choosing one to resume from, and removing old ones.

A run has a single sequence of checkpoints: the one that it resumed from, and those that it wrote since. Checkpoints
with higher numbers, which belong to another continuation, are set aside before the first one is written, so that the
highest numbers are always the latest of the run.
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
    """Return the number in a checkpoint's name, None if it is not the name of a checkpoint."""
    match = _NAME.fullmatch(path.name)
    return None if match is None else int(match[1])


def list_checkpoints(output_dir: Path) -> list[Path]:
    """Return folders (and links to folders) with the name of a checkpoint, lowest number first."""
    found = [(number, path) for path in output_dir.glob(f"{PREFIX}*") if (number := number_of(path)) is not None]
    return [path for _, path in sorted(found) if path.is_dir()]


def steps_in(checkpoint: Path) -> int | None:
    """Return the number of steps recorded in a checkpoint; None if it cannot be read."""
    try:
        report = json.loads((checkpoint / PROGRESS_FILE).read_text(encoding="utf-8"))
        steps = report["progress"]["total_steps"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return steps if type(steps) is int else None


def choose_checkpoint(
    output_dir: Path, wanted: str, why_rather_older: Callable[[Path], str | None] = lambda checkpoint: None
) -> Path | None:
    """Return the checkpoint to resume from: the latest intact one for "latest", None for "none", or the one that is
    named.

    The latest is the one with the most steps, regardless of its name. Damaged ones are skipped with a message. A name
    is looked up in `output_dir`, then as a path.

    Args:
        output_dir: output folder of the run.
        wanted: "latest", "none", or the name or folder of a checkpoint.
        why_rather_older: returns why "latest" should be an older checkpoint than this one, None if it should not.

    Raises:
        ValueError: the named checkpoint does not exist or is damaged; or `why_rather_older` raises it for the latest.
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
    """Return the intact checkpoint with the most steps, or the first older one that is preferred; None if there is
    none.
    """
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
    """Rename all checkpoints after `step`, except `source`, since a run that continues from there will use their
    names.

    Args:
        output_dir: output folder of the run.
        step: number of steps of the run.
        source: the checkpoint from which it resumes.

    Returns:
        The new names: "set-aside-checkpoint-8", or "set-aside-checkpoint-8-2" if that exists.
    """
    kept = None if source is None else source.resolve()
    moved = []
    # Files and dangling links count too, since they would be in the way.
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
            "Continuing from step %d: %s after that set aside, as %s in %s. Nothing deletes %s; resume from one "
            "with --resume_from_checkpoint %s.",
            step,
            "what is" if len(moved) == 1 else "those",
            ", ".join(path.name for path in moved),
            output_dir,
            "it" if len(moved) == 1 else "them",
            moved[-1].name,
        )
    return moved


def make_room(output_dir: Path, limit: int | None, source: Path | None = None) -> None:
    """Remove the oldest checkpoints such that `limit` are left, but not links or the checkpoint that the run resumed
    from.

    A checkpoint that cannot be removed is reported and kept.
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
