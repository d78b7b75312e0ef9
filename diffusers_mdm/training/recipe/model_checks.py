# SPDX-License-Identifier: Apache-2.0
"""Checks of the model and scheduler arguments in a recipe: types, sizes, and whether the model can be built.

Sizes are bounded before anything is built, because a typo (`layers_per_block: [1000000000]`) would otherwise use all
memory before any check of the model itself.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ...models.level_config import LevelConfig
from ...models.level_geometry import level_sides
from ...models.nested_unet import NestedUNetModel
from ...schedulers.scheduling_matryoshka import MatryoshkaScheduler
from .fields import COUNT, NOT_NEGATIVE, POSITIVE, SHARE_BELOW_ONE, FieldError, Range, check_ranges, read_arguments
from .stage import MAX_LEVELS

_WIDTH = Range(1, 2**16)
_LAYERS = Range(0, 256)
MAX_RESOLUTIONS = 12
MAX_SIDE = 2**16  # side of the outermost level, in pixels or latents
MODEL_RANGES = {
    "sample_size": Range(1, MAX_SIDE),
    "in_channels": _WIDTH,
    "out_channels": _WIDTH,
    "num_attention_heads": _WIDTH,
    "attention_norm_num_groups": _WIDTH,
    "norm_eps": POSITIVE,
    "time_embed_dim": _WIDTH,
    "encoder_hid_dim": _WIDTH,
    "cross_attention_dim": _WIDTH,
    "num_text_layers": _LAYERS,
    "num_class_embeds": Range(2, 2**24),  # one per class, and a last one for "no class"
    "output_bound": POSITIVE,
}
LEVEL_RANGES = {
    "block_out_channels": _WIDTH,
    "layers_per_block": Range(1, 256),
    "attention_layers_per_block": _LAYERS,
    "temporal_layers_per_block": _LAYERS,
    "norm_num_groups": _WIDTH,
    "dropout": SHARE_BELOW_ONE,
    "num_frames": Range(1, 2**12),
    "patch_size": Range(1, 256),
}
SCHEDULER_RANGES = {
    "num_train_timesteps": Range(1, 100_000),
    "beta_start": POSITIVE,
    "beta_end": Range(0, 1, open_low=True),
    "trained_betas": Range(0, 1, open_low=True),
    "shift_power": NOT_NEGATIVE,
    "base_sample_size": Range(1, MAX_SIDE),
    "clip_sample_range": POSITIVE,
    "sample_max_value": POSITIVE,
    "steps_offset": NOT_NEGATIVE,
    "solver_order": COUNT,
    "sigma_data": POSITIVE,
}
_LEVEL_FIELD = re.compile(rf"`?\b({'|'.join(LevelConfig.__dataclass_fields__)})`?\[(\d+)\]`?")


def read_model_arguments(model: Mapping[str, Any]) -> dict[str, Any]:
    """Check the types and ranges of a recipe's `model`, the arguments of `NestedUNetModel`.

    Raises:
        ValueError: names the field.
    """
    values = read_arguments(NestedUNetModel, model, "model", leave_out=LevelConfig.__dataclass_fields__)
    _check("model", values, MODEL_RANGES)
    return values


def read_scheduler_arguments(scheduler: Mapping[str, Any]) -> dict[str, Any]:
    """Check the types and ranges of a recipe's `scheduler`, the arguments of `MatryoshkaScheduler`.

    Raises:
        ValueError: names the field.
    """
    values = read_arguments(MatryoshkaScheduler, scheduler, "scheduler")
    _check("scheduler", values, SCHEDULER_RANGES)
    betas = values.get("trained_betas")
    if betas is not None and not 0 < len(betas) <= 100_000:
        raise FieldError("scheduler.trained_betas", "must have 1 to 100,000 entries.")
    return values


def check_levels(level_configs: Sequence[LevelConfig], sample_size: int) -> None:
    """Check that levels are not too large and do not contradict themselves or each other.

    Raises:
        ValueError: names the field.
    """
    if len(level_configs) > MAX_LEVELS:
        raise FieldError("levels", f"has {len(level_configs)} entries; at most {MAX_LEVELS} are allowed.")
    for position, level_config in enumerate(level_configs):
        if len(level_config.block_out_channels) > MAX_RESOLUTIONS:
            raise FieldError(f"levels[{position}].block_out_channels", f"must have at most {MAX_RESOLUTIONS} entries.")
        _check(f"levels[{position}]", vars(level_config), LEVEL_RANGES)
    try:
        LevelConfig.levels_from(LevelConfig.columns_from(tuple(level_configs)))
    except ValueError as error:
        raise ValueError(spell_level_fields(str(error))) from error
    side = level_sides(sample_size, level_configs)[-1]
    if side > MAX_SIDE:
        raise FieldError("levels", f"has a side of {side:,} pixels or latents; at most {MAX_SIDE:,} are allowed.")


def check_can_be_made(
    model: Mapping[str, Any], level_configs: Sequence[LevelConfig], scheduler: Mapping[str, Any]
) -> None:
    """Check that the model of a recipe (without memory for weights) and its scheduler can be built.

    Args:
        model: model arguments that do not belong to a level.
        level_configs: configs of the levels, innermost first.
        scheduler: scheduler arguments.

    Raises:
        ValueError: the arguments contradict each other; the message names the fields.
    """
    try:
        with torch.device("meta"):
            unet = NestedUNetModel(**model, **LevelConfig.columns_from(tuple(level_configs)))
    except ValueError as error:
        raise ValueError(f"`model` and `levels`: {spell_level_fields(str(error))}") from error
    side = unet.sample_sizes[0]
    if side % unet.size_multiple:
        raise FieldError(
            "model.sample_size",
            f"is {side}, but the resolutions of the levels need a multiple of {unet.size_multiple}.",
        )
    try:
        power = MatryoshkaScheduler(**scheduler).alphas_cumprod
    except ValueError as error:
        raise ValueError(f"`scheduler`: {error}") from error
    kind = scheduler.get("prediction_type", "v_prediction")
    if power[-1] == 0 and "epsilon" in ([kind] if isinstance(kind, str) else kind):
        raise FieldError(
            "scheduler.prediction_type",
            "is 'epsilon', but the last timestep of this noise schedule is pure noise, from which a prediction of the "
            "noise does not determine an image; use 'v_prediction' or 'sample'.",
        )


def spell_level_fields(message: str) -> str:
    """Rewrite a message about a model's config to name fields as in a recipe: `levels[1].num_frames`."""
    return _LEVEL_FIELD.sub(r"`levels[\2].\1`", message)


def _check(where: str, values: Mapping[str, Any], ranges: Mapping[str, Range]) -> None:
    try:
        check_ranges(values, {name: allowed for name, allowed in ranges.items() if name in values})
    except ValueError as error:
        # The message says `field`; in the recipe that is `where.field`.
        raise ValueError(str(error).replace("`", f"`{where}.", 1)) from error
