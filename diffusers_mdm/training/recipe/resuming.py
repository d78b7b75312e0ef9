# SPDX-License-Identifier: Apache-2.0
"""What a checkpoint fixes of a recipe, what may change when a run is resumed, and what changes nothing any more.

`EFFECTS` is the one table of this. Of the stages it speaks of the one that the checkpoint is in: those before it are
over, so that of them only what says which they are is fixed and nothing else has an effect; those after it are free.
"""

import dataclasses
import enum
import itertools
import reprlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...models.level_config import LevelConfig
from ...models.nested_unet import NestedUNetModel
from ...schedulers.scheduling_matryoshka import MatryoshkaScheduler
from .fields import argument_defaults, read_fields
from .recipe import Recipe
from .stage import StageRecipe


class Effect(enum.Enum):
    """What it means for a resumed run that a field has another value than in its checkpoint."""

    FIXED = "fixed"  # the saved tensors, or the order of the data, are those of the old value
    MAY_CHANGE = "may change"  # the new value counts from here on
    NONE = "no effect"  # what the field decides has happened


FIXED, MAY_CHANGE, NONE = Effect.FIXED, Effect.MAY_CHANGE, Effect.NONE

# By field. "part.*" is for the fields of a part that are not listed, and for whether there is such a part.
EFFECTS: dict[str, Effect] = {
    "seed": FIXED,  # of the command
    "name": MAY_CHANGE,
    "model": FIXED,
    "levels": FIXED,  # those that the model has; those around them are free
    "scheduler": FIXED,
    "vae.*": FIXED,
    "vae.variant": MAY_CHANGE,
    "use_ema": FIXED,
    "channels_last": MAY_CHANGE,
    "mixed_precision": MAY_CHANGE,
    "zero_init": NONE,
    "pretrained.*": FIXED,
    "pretrained.variant": MAY_CHANGE,
    "lora.*": FIXED,
    "lora.dropout": MAY_CHANGE,
    "text_encoder.*": FIXED,
    "text_encoder.initializer_factor": NONE,
    "text_encoder.max_sequence_length": MAY_CHANGE,
    "text_encoder.learning_rate_scale": MAY_CHANGE,
    "text_encoder.token_learning_rate_scale": MAY_CHANGE,
    "data.*": MAY_CHANGE,
    "pictures.*": MAY_CHANGE,
    "prior_preservation.*": MAY_CHANGE,
    "optimizer.*": MAY_CHANGE,
    "validation.*": MAY_CHANGE,
    "stages.*": MAY_CHANGE,
    "stages.name": FIXED,
    "stages.levels": FIXED,
    "stages.as_pictures": FIXED,
    "stages.frozen_levels": FIXED,  # the optimizer knows the parameters that learn, and no others
    "stages.seed": FIXED,
}
# Of a stage that is over: which it is.
_IDENTITY = ("name", "levels", "as_pictures")
# Names of folders, which may have moved.
_PLACES = ("text_encoder.pretrained", "pretrained.path", "vae.pretrained")


@dataclass(frozen=True)
class Saved:
    """What a checkpoint says of its run.

    Attributes:
        where: the checkpoint, for messages.
        recipe: of the run, as plain values (`dataclasses.asdict`); an older version may not have had all fields.
        stage_index: stages that are over.
        num_levels: levels of the saved model.
        seed: of the command; None where a version did not keep it.
    """

    where: str
    recipe: Mapping[str, Any]
    stage_index: int
    num_levels: int
    seed: int | None = None


@dataclass(frozen=True)
class Change:
    """A field with another value than in the checkpoint."""

    field: str
    old: Any
    new: Any
    effect: Effect

    def __str__(self) -> str:
        return f"`{self.field}` {_short.repr(self.old)} -> {_short.repr(self.new)}"


@dataclass(frozen=True)
class Resumption:
    """What a run goes on with.

    Attributes:
        recipe: the new one, in which what has no effect any more is as it was when it had one.
        changes: from the checkpoint's recipe to the new one.
    """

    recipe: Recipe
    changes: tuple[Change, ...]

    def lines(self) -> Iterator[str]:
        """What has changed, in words; nothing if nothing has."""
        words = {MAY_CHANGE: "Changed, from here on", NONE: "Changed without effect, because it concerns what is over"}
        for effect, start in words.items():
            if found := [str(change) for change in self.changes if change.effect is effect]:
                yield f"{start}: {', '.join(found)}."


def compare_with_checkpoint(recipe: Recipe, seed: int, saved: Saved) -> Resumption:
    """Whether a run can go on from a checkpoint with this recipe, and how. Nothing is written.

    Args:
        recipe: that the run is resumed with, with the flags' changes.
        seed: of the command.
        saved: what the checkpoint says.

    Raises:
        ValueError: something that the checkpoint fixes is different; names the field and both values, and says what
            to do. Or the saved recipe cannot be read.
    """
    try:
        old = read_fields(Recipe, dict(saved.recipe))
    except ValueError as error:
        raise ValueError(
            f"{saved.where} holds a recipe that this version cannot read: {error} Resume with the version that wrote "
            "it, or start over with --resume_from_checkpoint none."
        ) from error
    changes = list(_changes(old, recipe, saved))
    if saved.seed is not None and saved.seed != seed:
        changes.insert(0, Change("seed", saved.seed, seed, EFFECTS["seed"]))
    wrong = [str(change) for change in changes if change.effect is FIXED]
    if wrong:
        raise ValueError(
            f"{saved.where} cannot go on with what has been changed since: {', '.join(wrong)}. Use the old value"
            f"{'s' if len(wrong) > 1 else ''} again, train into another --output_dir, or start over in this one with "
            "--resume_from_checkpoint none."
        )
    return Resumption(_with_what_is_over(recipe, old, saved.stage_index), tuple(changes))


def effect_of(field: str) -> Effect:
    """The table's word on a field such as "optimizer.adam_beta1" or "stages.steps".

    Raises:
        KeyError: the table lacks it.
    """
    part = field.split(".")[0]
    return EFFECTS[field] if field in EFFECTS else EFFECTS[f"{part}.*"]


def _changes(old: Recipe, new: Recipe, saved: Saved) -> Iterator[Change]:
    for field in dataclasses.fields(Recipe):
        before, after = getattr(old, field.name), getattr(new, field.name)
        if field.name == "stages":
            yield from _stage_changes(old.stages, new.stages, saved.stage_index)
        elif field.name == "levels":
            yield from _level_changes(old, new, saved.num_levels)
        elif field.name in ("model", "scheduler"):
            yield from _argument_changes(field.name, old, new)
        elif dataclasses.is_dataclass(before) and type(before) is type(after):
            names = dict.fromkeys(inner.name for part in (before, after) for inner in dataclasses.fields(part))
            for name in names:  # data may have become of another kind, with other fields
                path = f"{field.name}.{name}"
                yield from _change(path, getattr(before, name, None), getattr(after, name, None), effect_of(path))
        else:
            whole = f"{field.name}.*"
            yield from _change(field.name, before, after, EFFECTS[whole if whole in EFFECTS else field.name])


def _change(field: str, old: Any, new: Any, effect: Effect) -> Iterator[Change]:
    if old != new and not (field in _PLACES and _same_place(old, new)):
        yield Change(field, old, new, effect)


def _same_place(old: str | None, new: str | None) -> bool:
    """Whether two names may be those of one folder, which has moved; names on the Hub are compared whole."""
    if old is None or new is None or not any(Path(name).is_absolute() or Path(name).exists() for name in (old, new)):
        return False
    return Path(old).name == Path(new).name


def _argument_changes(part: str, old: Recipe, new: Recipe) -> Iterator[Change]:
    """Of `model` or `scheduler`, where an argument that is left out has its default."""
    defaults = argument_defaults(NestedUNetModel if part == "model" else MatryoshkaScheduler)
    if part == "scheduler":
        defaults["base_sample_size"] = old.sample_size
    before, after = getattr(old, part), getattr(new, part)
    for name in sorted({*before, *after}):
        values = [_as_tuple(given.get(name, defaults.get(name))) for given in (before, after)]
        yield from _change(f"{part}.{name}", values[0], values[1], EFFECTS[part])


def _as_tuple(value: Any) -> Any:
    return tuple(map(_as_tuple, value)) if isinstance(value, (list, tuple)) else value


def _level_changes(old: Recipe, new: Recipe, num_levels: int) -> Iterator[Change]:
    for position, (before, after) in enumerate(itertools.zip_longest(old.rows, new.rows)):
        effect = EFFECTS["levels"] if position < num_levels else MAY_CHANGE
        where = f"levels[{position}]"
        if before is None or after is None:
            yield Change(where, before and "there", after and "there", effect)
            continue
        for name in (field.name for field in dataclasses.fields(LevelConfig)):
            yield from _change(f"{where}.{name}", getattr(before, name), getattr(after, name), effect)


def _stage_changes(old: tuple[StageRecipe, ...], new: tuple[StageRecipe, ...], stage_index: int) -> Iterator[Change]:
    for position, (before, after) in enumerate(itertools.zip_longest(old, new)):
        where = f"stages[{position}]"
        if before is None or after is None:
            effect = FIXED if position <= stage_index else MAY_CHANGE
            yield Change(where, before and before.name, after and after.name, effect)
            continue
        for name in (field.name for field in dataclasses.fields(StageRecipe)):
            effect = effect_of(f"stages.{name}")
            if position > stage_index:
                effect = MAY_CHANGE
            elif position < stage_index:
                effect = FIXED if name in _IDENTITY else NONE
            yield from _change(f"{where}.{name}", getattr(before, name), getattr(after, name), effect)


def _with_what_is_over(recipe: Recipe, old: Recipe, stage_index: int) -> Recipe:
    """The recipe with what has no effect any more as it was when it had one."""
    encoder = recipe.text_encoder
    if encoder is not None and old.text_encoder is not None:
        encoder = dataclasses.replace(encoder, initializer_factor=old.text_encoder.initializer_factor)
    stages = (*old.stages[:stage_index], *recipe.stages[stage_index:])
    return dataclasses.replace(recipe, stages=stages, text_encoder=encoder, zero_init=old.zero_init)


_short = reprlib.Repr()
_short.maxstring = _short.maxother = 60
