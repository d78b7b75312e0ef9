# SPDX-License-Identifier: Apache-2.0
"""Which recipe fields may change when a run is resumed from a checkpoint.

The table `EFFECTS` says for every field whether it is fixed by the checkpoint, applies from there on, or has no effect
any more. For stages it refers to the one that the checkpoint is in. Earlier stages are finished: the fields that
identify them are fixed, and no other has an effect. Later stages can be changed freely.
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
    """What it means for a resumed run if a field differs from its checkpoint."""

    FIXED = "fixed"  # the saved tensors, or the order of the data, depend on the old value
    MAY_CHANGE = "may change"  # the new value applies from here on
    NONE = "no effect"  # what the field determines has already happened


FIXED, MAY_CHANGE, NONE = Effect.FIXED, Effect.MAY_CHANGE, Effect.NONE

# By field. "part.*" stands for all fields of a part that are not listed, and for the presence of the part.
EFFECTS: dict[str, Effect] = {
    "seed": FIXED,  # the seed given to the command
    "name": MAY_CHANGE,
    "model": FIXED,
    "levels": FIXED,  # levels that the model already has; outer ones can be changed
    "scheduler": FIXED,
    "vae.*": FIXED,
    "vae.variant": MAY_CHANGE,
    "super_resolution.*": FIXED,
    "super_resolution.max_noise_level": MAY_CHANGE,
    "use_ema": FIXED,
    "post_hoc_ema.*": FIXED,
    "post_hoc_ema.snapshot_steps": MAY_CHANGE,
    "post_hoc_ema.snapshots_total_limit": MAY_CHANGE,
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
    "images.*": MAY_CHANGE,
    "prior_preservation.*": MAY_CHANGE,
    "optimizer.*": MAY_CHANGE,
    "optimizer.name": FIXED,
    "optimizer.use_8bit_adam": FIXED,
    "validation.*": MAY_CHANGE,
    "alignment.*": MAY_CHANGE,
    "alignment.encoder": FIXED,  # the projection is trained for it
    "alignment.hidden_channels": FIXED,
    "perceptual.*": MAY_CHANGE,
    "stages.*": MAY_CHANGE,
    "stages.name": FIXED,
    "stages.levels": FIXED,
    "stages.as_images": FIXED,
    "stages.frozen_levels": FIXED,  # the optimizer state contains only the trained parameters
    "stages.seed": FIXED,
}
# The fields that identify a finished stage.
_IDENTITY = ("name", "levels", "as_images")
# Fields with names of folders, which may have been moved.
_PLACES = ("text_encoder.pretrained", "pretrained.path", "vae.pretrained", "alignment.encoder")


@dataclass(frozen=True)
class Saved:
    """The record of a run in a checkpoint.

    Attributes:
        where: name of the checkpoint, for messages.
        recipe: recipe of the run as plain values (`dataclasses.asdict`); older versions lack some fields.
        stage_index: number of finished stages.
        num_levels: levels of the saved model.
        seed: seed given to the command; None for versions that did not save it.
    """

    where: str
    recipe: Mapping[str, Any]
    stage_index: int
    num_levels: int
    seed: int | None = None


@dataclass(frozen=True)
class Change:
    """A field that differs from the checkpoint."""

    field: str
    old: Any
    new: Any
    effect: Effect

    def __str__(self) -> str:
        return f"`{self.field}` {_short.repr(self.old)} -> {_short.repr(self.new)}"


@dataclass(frozen=True)
class Resumption:
    """What a resumed run continues with.

    Attributes:
        recipe: the new recipe, in which fields without effect have their original values.
        changes: changes from the checkpoint's recipe to the new one.
    """

    recipe: Recipe
    changes: tuple[Change, ...]

    def lines(self) -> Iterator[str]:
        """Describe the changes; empty if there are none."""
        words = {
            MAY_CHANGE: "Changed from here on",
            NONE: "Changed without effect, because it concerns finished stages",
        }
        for effect, start in words.items():
            if found := [str(change) for change in self.changes if change.effect is effect]:
                yield f"{start}: {', '.join(found)}."


def compare_with_checkpoint(recipe: Recipe, seed: int, saved: Saved) -> Resumption:
    """Check whether a run can be resumed from a checkpoint with this recipe. Writes nothing.

    Args:
        recipe: the recipe to resume with, including the changes made by flags.
        seed: seed given to the command.
        saved: the record in the checkpoint.

    Raises:
        ValueError: a field that the checkpoint fixes differs; the message names the field and both values, and says
            what to do. Or the saved recipe cannot be read.
    """
    try:
        old = read_fields(Recipe, dict(saved.recipe))
    except ValueError as error:
        raise ValueError(
            f"{saved.where} has a recipe that this version cannot read: {error} Resume with the version that wrote "
            f"it, or start over with --resume_from_checkpoint none."
        ) from error
    changes = list(_changes(old, recipe, saved))
    if saved.seed is not None and saved.seed != seed:
        changes.insert(0, Change("seed", saved.seed, seed, EFFECTS["seed"]))
    wrong = [str(change) for change in changes if change.effect is FIXED]
    if wrong:
        raise ValueError(
            f"{saved.where} cannot be resumed with these changes: {', '.join(wrong)}. Use the old value"
            f"{'s' if len(wrong) > 1 else ''} again, train into another --output_dir, or start over in this one with "
            "--resume_from_checkpoint none."
        )
    return Resumption(_with_what_is_over(recipe, old, saved.stage_index), tuple(changes))


def effect_of(field: str) -> Effect:
    """Look up a field such as "optimizer.adam_beta1" or "stages.steps" in the table.

    Raises:
        KeyError: the field is not in the table.
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
            for name in names:  # the data may now be of another kind, with other fields
                path = f"{field.name}.{name}"
                yield from _change(path, getattr(before, name, None), getattr(after, name, None), effect_of(path))
        else:
            whole = f"{field.name}.*"
            yield from _change(field.name, before, after, EFFECTS[whole if whole in EFFECTS else field.name])


def _change(field: str, old: Any, new: Any, effect: Effect) -> Iterator[Change]:
    if old != new and not (field in _PLACES and _same_place(old, new)):
        yield Change(field, old, new, effect)


def _same_place(old: str | None, new: str | None) -> bool:
    """Return whether two names may refer to the same folder, which was moved; Hub ids must be equal."""
    if old is None or new is None or not any(Path(name).is_absolute() or Path(name).exists() for name in (old, new)):
        return False
    return Path(old).name == Path(new).name


def _argument_changes(part: str, old: Recipe, new: Recipe) -> Iterator[Change]:
    """Return the changes in `model` or `scheduler`, where a missing argument has its default."""
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
    for position, (before, after) in enumerate(itertools.zip_longest(old.level_configs, new.level_configs)):
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
    """Return the recipe with the original values of all fields that no longer have an effect."""
    encoder = recipe.text_encoder
    if encoder is not None and old.text_encoder is not None:
        encoder = dataclasses.replace(encoder, initializer_factor=old.text_encoder.initializer_factor)
    stages = (*old.stages[:stage_index], *recipe.stages[stage_index:])
    return dataclasses.replace(recipe, stages=stages, text_encoder=encoder, zero_init=old.zero_init)


_short = reprlib.Repr()
_short.maxstring = _short.maxother = 60
