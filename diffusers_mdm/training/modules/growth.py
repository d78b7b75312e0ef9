# SPDX-License-Identifier: Apache-2.0
"""Adding levels or frames to a model during training, without losing weights or averages.

The parameters of a `NestedUNetModel` keep their names when it grows. After adding a level they also come first and in
their old order; after adding frames they do not, because temporal layers are inserted between them. Therefore averages
and optimizer state are stored by name: see `state/moving_average.py` and `state/optimizer.py`.
"""

from collections.abc import Sequence

from ...models.level_config import LevelConfig
from ...models.nested_unet import NestedUNetModel
from ..recipe.clip_checks import check_becomes_clips
from ..recipe.clip_stages import without_frames


def grow_model(unet: NestedUNetModel, level_config: LevelConfig) -> NestedUNetModel:
    """Add a level around `unet`; the predictions of the inner levels remain exactly the same.

    Raises:
        RuntimeError: if the old parameters are not a prefix of the new ones.
    """
    grown = unet.add_level(level_config)
    old = [(name, tuple(value.shape)) for name, value in unet.named_parameters()]
    new = [(name, tuple(value.shape)) for name, value in grown.named_parameters()]
    if new[: len(old)] != old:
        raise RuntimeError(
            "The parameters of the larger model do not begin with those of the old one, in the same order."
        )
    return grown


def grow_to(unet: NestedUNetModel, level_configs: Sequence[LevelConfig]) -> NestedUNetModel:
    """Add the frames and levels that a model lacks; returns `unet` itself if it lacks none.

    An image model to which frames are added at first predicts each frame like a separate image, and single frames
    exactly as before.

    Args:
        unet: a model with the inner ones of these levels, with these frames or as an image model.
        level_configs: level configs of the result, innermost first.

    Raises:
        ValueError: the model has other frames, and these cannot be added.
    """
    inner = tuple(level_configs[: unet.num_levels])
    wanted = tuple(level.num_frames for level in inner)
    if unet.level_frames[: len(level_configs)] != wanted:
        check_frames_can_become(unet, inner)
        rotary = any(level.temporal_rotary for level in inner)
        unet = unet.to_video(wanted[0], [level.temporal_layers_per_block for level in inner], rotary)
    for level_config in level_configs[unet.num_levels :]:
        unet = grow_model(unet, level_config)
    return unet


def check_frames_can_become(unet: NestedUNetModel, level_configs: tuple[LevelConfig, ...]) -> None:
    """Check that a model is the image model to which the frames of `level_configs` can be added.

    Raises:
        ValueError: says what the model is, and what was expected.
    """
    wanted = tuple(level.num_frames for level in level_configs)
    if set(unet.level_frames) != {1} or len(set(wanted)) != 1:
        raise ValueError(
            f"The levels of the model have {spell_frames(unet.level_frames)} frames, but those of the recipe (or of "
            f"its stage) {spell_frames(wanted)}. Frames can only be added to an image model, the same number at "
            f"all of its levels; levels that resample frames are added around it. Use the model's numbers of "
            f"frames in `levels`, or start from an image model."
        )
    check_becomes_clips(level_configs)
    shapes = [level.block_out_channels for level in map(without_frames, level_configs)]
    if [level.block_out_channels for level in unet.level_configs] != shapes:
        raise ValueError(
            f"The model to which frames are to be added has the channels "
            f"{[level.block_out_channels for level in unet.level_configs]}, innermost level first, but the recipe's "
            f"levels have {shapes}. Use the model's own levels in `levels`, and add frames and temporal layers to "
            f"them."
        )


def spell_frames(frames: Sequence[int]) -> str:
    """Format (1, 4, 4) as "1, 4, 4"."""
    return ", ".join(map(str, frames))
