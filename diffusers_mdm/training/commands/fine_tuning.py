# SPDX-License-Identifier: Apache-2.0
"""Fine-tuning: the recipe that continues the training of a saved pipeline."""

import dataclasses
import inspect
import math
from pathlib import Path
from typing import Any

import torch

from ...models.level_config import LevelConfig
from ...models.level_geometry import level_sides
from ...models.nested_unet import NestedUNetModel
from ...pipelines.drawing.latent_space import config_scale_factor
from ...pipelines.pipeline_mdm import MDMPipeline
from ...schedulers.scheduling_matryoshka import MatryoshkaScheduler
from ..data.sources import open_source
from ..modules.autoencoder import has_vae, scale_factor_of, vae_config
from ..recipe.data import DataRecipe
from ..recipe.recipe import PretrainedRecipe, Recipe
from ..recipe.stage import StageRecipe
from ..recipe.text_encoder import TextEncoderRecipe
from ..recipe.vae import VaeRecipe

# Small steps at a constant rate, so that the model keeps what it can and learns what is new.
LEARNING_RATE = 1e-5
LORA_LEARNING_RATE = 1e-4
SUBJECT_LEARNING_RATE = 5e-6
BATCH_SIZE = 16
SUBJECT_BATCH_SIZE = 4


def recipe_for_pipeline(
    pretrained: PretrainedRecipe,
    data: DataRecipe,
    steps: int,
    train_levels: int | None = None,
    resolution: int | None = None,
    cache_dir: str | None = None,
    num_frames: int | None = None,
) -> Recipe:
    """One stage at the levels that a saved pipeline has, without averages; only its configs are read.

    Args:
        pretrained: the pipeline.
        data: what it learns from.
        steps: optimizer steps of the stage.
        train_levels: train, and keep, this many of the innermost levels.
        resolution: the same, given as the side in pixels of the outermost level to train.
        cache_dir: where downloaded files are kept.
        num_frames: make a pipeline of pictures one of clips, with temporal layers wherever there can be some.

    Raises:
        ValueError: the folder holds no pipeline of `NestedUNetModel` and `MatryoshkaScheduler`, or it does not have
            that many levels, or its model has classes or frames and the data none, or the other way round.
    """
    unet, scheduler = read_configs(pretrained, cache_dir)
    rows = rows_with_frames(unet, num_frames, pretrained.path)
    check_has_clips(rows, data, pretrained.path)
    vae = VaeRecipe(from_pipeline=True) if has_vae(pretrained, cache_dir) else None
    factor = 1 if vae is None else config_scale_factor(vae_config(vae, pretrained, cache_dir))
    sides = tuple(side * factor for side in level_sides(unet["sample_size"], rows))
    num_levels = inner_levels(sides, train_levels, resolution)
    columns = set(LevelConfig.columns_from(rows))
    sees_text, has_classes = unet.get("cross_attention_dim") is not None, unet.get("num_class_embeds") is not None
    if has_classes and data.label_column is None:
        raise ValueError(f"{pretrained.path} draws classes: name the column that has them with --label_column.")
    if not has_classes and data.label_column is not None:
        raise ValueError(
            f"{pretrained.path} has no classes: train it on captions with training/train_text_to_image_mdm.py and "
            "without --label_column, or start from a model of classes."
        )
    if not sees_text and data.caption is None:
        data = dataclasses.replace(data, caption="")
    stage = StageRecipe(
        name="fine-tuning",
        levels=num_levels,
        batch_size=BATCH_SIZE,
        learning_rate=LEARNING_RATE,
        steps=steps,
        lr_scheduler="constant",
    )
    return Recipe(
        name=f"{Path(pretrained.path).name}-finetuned",
        model={key: value for key, value in unet.items() if key not in columns},
        levels=tuple(_as_mapping(row) for row in rows[:num_levels]),
        text_encoder=TextEncoderRecipe(from_pipeline=True) if sees_text else None,
        data=data,
        stages=(stage,),
        pretrained=pretrained,
        vae=vae,
        scheduler=scheduler,
        use_ema=False,
    )


def rows_with_frames(config: dict[str, Any], num_frames: int | None, name: str) -> tuple[LevelConfig, ...]:
    """The level rows of a saved model; of pictures, if it is to draw clips, with frames and temporal layers.

    Args:
        config: of its `NestedUNetModel`.
        num_frames: of the clips; None: as the model is.
        name: of its pipeline, for the message.

    Raises:
        ValueError: it draws clips already, of another length.
    """
    rows = LevelConfig.rows_from(config)
    if num_frames is None or num_frames == rows[-1].num_frames:
        return rows
    if any(row.num_frames != 1 for row in rows):
        raise ValueError(
            f"--num_frames is {num_frames}, but {name} draws clips of {rows[-1].num_frames} frames; leave it out, or "
            "start from a pipeline of pictures."
        )
    with torch.device("meta"):
        return NestedUNetModel(**config).to_video(num_frames).level_rows


def check_has_clips(rows: tuple[LevelConfig, ...], data: DataRecipe, name: str) -> None:
    """Refuse data without clips for a model of these; other models can learn from the frames of clips.

    Raises:
        ValueError: says how the data gets them.
    """
    if any(row.num_frames != 1 for row in rows) and data.video_column is None:
        raise ValueError(
            f"{name} is to draw clips: train it with training/train_text_to_video_mdm.py, and name the column that "
            "has them with --video_column."
        )


def read_configs(pretrained: PretrainedRecipe, cache_dir: str | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arguments of a saved pipeline's `NestedUNetModel` and `MatryoshkaScheduler`, without its weights.

    Raises:
        ValueError: it has other classes in their place, or there is no such pipeline.
    """
    where = {"cache_dir": cache_dir, "revision": pretrained.revision}
    try:
        index = MDMPipeline.load_config(pretrained.path, **where)
        configs = []
        for part, cls in (("unet", NestedUNetModel), ("scheduler", MatryoshkaScheduler)):
            found = (index.get(part) or [None, None])[1]
            if found != cls.__name__:
                raise ValueError(f"{pretrained.path} has {found} as its {part}; training needs a {cls.__name__}.")
            known = set(inspect.signature(cls.__init__).parameters) - {"self"}
            config = cls.load_config(pretrained.path, subfolder=part, **where)
            configs.append({key: value for key, value in config.items() if key in known})
    except OSError as error:
        raise ValueError(
            f"{pretrained.path} is no saved pipeline: {error} Give a folder that `save_pretrained` wrote, or a Hub id."
        ) from error
    return configs[0], configs[1]


def inner_levels(sides: tuple[int, ...], train_levels: int | None, resolution: int | None) -> int:
    """How many inner levels of a model are to be trained: as asked for, or all.

    Args:
        sides: in pixels, of all levels of the model, innermost first.
        train_levels: their number.
        resolution: side of the outermost of them.

    Raises:
        ValueError: the model does not have them, or the two contradict each other.
    """
    if train_levels is not None and not 1 <= train_levels <= len(sides):
        raise ValueError(f"--train_levels is {train_levels}, but the model has {len(sides)} levels; give 1 to that.")
    if resolution is not None:
        if resolution not in sides:
            raise ValueError(
                f"--resolution is {resolution}, but the levels of the model have {', '.join(map(str, sides))} pixels; "
                "give one of these."
            )
        found = sides.index(resolution) + 1
        if train_levels is not None and train_levels != found:
            raise ValueError(
                f"--resolution {resolution} means {found} level(s), but --train_levels is {train_levels}; drop one."
            )
        return found
    return len(sides) if train_levels is None else train_levels


def picture_sides(recipe: Recipe, cache_dir: str | None = None) -> tuple[int, ...]:
    """Side in pixels of the pictures of every level, innermost first; of latents by the autoencoder's config.

    Raises:
        ValueError: there is no such autoencoder.
    """
    factor = scale_factor_of(recipe, cache_dir)
    return tuple(side * factor for side in recipe.sides)


def count_pictures(data: DataRecipe, flag: str) -> int:
    """Pictures in one pass over the training data.

    Args:
        data: what is trained on.
        flag: who asks, for the message.

    Raises:
        ValueError: shards do not say how many pictures they hold.
    """
    count = open_source(data).num_samples()
    if count is None:
        raise ValueError(
            f"{flag} counts passes over the pictures, and shards do not say how many they hold; count in steps "
            "(--max_train_steps, --validation_steps)."
        )
    return count


def steps_for_passes(passes: int, num_pictures: int, pictures_per_step: int) -> int:
    """Optimizer steps that see every picture `passes` times, the last one rounded up."""
    return math.ceil(passes * num_pictures / pictures_per_step)


def _as_mapping(row: LevelConfig) -> dict[str, Any]:
    """A level's row as a recipe spells it, without what every level has."""
    plain = LevelConfig(row.block_out_channels, row.layers_per_block, row.attention_layers_per_block)
    needed = ("block_out_channels", "layers_per_block", "attention_layers_per_block")
    return {key: value for key, value in vars(row).items() if key in needed or value != getattr(plain, key)}
