# SPDX-License-Identifier: Apache-2.0
"""Growing a model in the middle of training: what old parameters have learnt, and their averages, stay.

A grown `NestedUNetModel` keeps the names of its old parameters. With one more level it also lists them first and in
their old order; with frames it does not: layers that connect these stand in the midst of the old ones. So what is
known of parameters is kept by name: see `averaging.py` and `optimizer.py`.
"""

from collections.abc import Sequence

from ...models.level_config import LevelConfig
from ...models.nested_unet import NestedUNetModel
from ..recipe.clip_checks import check_becomes_clips
from ..recipe.clip_rows import as_picture_row


def grow_model(unet: NestedUNetModel, row: LevelConfig) -> NestedUNetModel:
    """Wrap one more level around `unet`; its inner prediction does not change by a bit.

    Raises:
        RuntimeError: if the old parameters are not a prefix of the new ones.
    """
    grown = unet.add_level(row)
    old = [(name, tuple(value.shape)) for name, value in unet.named_parameters()]
    new = [(name, tuple(value.shape)) for name, value in grown.named_parameters()]
    if new[: len(old)] != old:
        raise RuntimeError("The grown model does not begin with the parameters of the old one, in their order.")
    return grown


def grow_to_rows(unet: NestedUNetModel, rows: Sequence[LevelConfig]) -> NestedUNetModel:
    """Give a model the frames and the levels that it lacks; `unet` itself if it lacks none.

    At first, a model of pictures that gets frames predicts each of them as a picture of its own, and single frames bit
    for bit as before.

    Args:
        unet: has these levels' inner ones, with these frames or as a model of pictures.
        rows: of the grown model, innermost first.

    Raises:
        ValueError: the frames are not those of the rows, and cannot become them.
    """
    inner = tuple(rows[: unet.num_levels])
    wanted = tuple(row.num_frames for row in inner)
    if unet.level_frames[: len(rows)] != wanted:
        check_frames_can_become(unet, inner)
        rotary = any(row.temporal_rotary for row in inner)
        unet = unet.to_video(wanted[0], [row.temporal_layers_per_block for row in inner], rotary)
    for row in rows[unet.num_levels :]:
        unet = grow_model(unet, row)
    return unet


def check_frames_can_become(unet: NestedUNetModel, rows: tuple[LevelConfig, ...]) -> None:
    """Refuse to make clips of `rows` of a model that is none of their pictures.

    Raises:
        ValueError: says what the model is, and what was expected.
    """
    wanted = tuple(row.num_frames for row in rows)
    if set(unet.level_frames) != {1} or len(set(wanted)) != 1:
        raise ValueError(
            f"The levels of the model have {spell_frames(unet.level_frames)} frames, but those of the recipe (or of "
            f"its stage) {spell_frames(wanted)}. Only a model of pictures gets frames, the same number on all of its "
            "levels; levels that resample frames are added around it. Write the model's frames into `levels`, or "
            "start from a model of pictures."
        )
    check_becomes_clips(rows)
    shapes = [row.block_out_channels for row in map(as_picture_row, rows)]
    if [row.block_out_channels for row in unet.level_rows] != shapes:
        raise ValueError(
            f"The model that gets frames has the channels {[row.block_out_channels for row in unet.level_rows]}, "
            f"innermost level first, but the recipe's levels have {shapes}. Write the model's own rows into `levels`, "
            "and add frames and temporal layers to them."
        )


def spell_frames(frames: Sequence[int]) -> str:
    """Write (1, 4, 4) as "1, 4, 4"."""
    return ", ".join(map(str, frames))
