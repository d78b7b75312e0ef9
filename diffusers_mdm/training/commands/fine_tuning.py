# SPDX-License-Identifier: Apache-2.0
"""Fine-tuning without a recipe file: building the recipe that continues the training of a saved pipeline."""

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
from ..recipe.pretrained import VaeRecipe
from ..recipe.recipe import PretrainedRecipe, Recipe
from ..recipe.stage import StageRecipe
from ..recipe.text_encoder import TextEncoderRecipe

# Small steps at a constant rate, so that the model learns what is new without forgetting what it knows.
LEARNING_RATE = 1e-5
LORA_LEARNING_RATE = 1e-4
SUBJECT_LEARNING_RATE = 5e-6
PRODIGY_LEARNING_RATE = 1.0
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
    """Return a recipe with one stage for the levels of a saved pipeline, without averages; reads only configs.

    Args:
        pretrained: the pipeline.
        data: the training data.
        steps: optimizer steps of the stage.
        train_levels: train, and keep, only this many of the innermost levels.
        resolution: the same, given as the side in pixels of the outermost level to train.
        cache_dir: where downloaded files are kept.
        num_frames: turn an image pipeline into a video pipeline, with temporal layers wherever possible.

    Raises:
        ValueError: the folder has no pipeline with `NestedUNetModel` and `MatryoshkaScheduler`, the model does not
            have that many levels, or only one of model and data has classes or frames.
    """
    unet, scheduler = read_configs(pretrained, cache_dir)
    level_configs = configs_with_frames(unet, num_frames, pretrained.path)
    check_has_clips(level_configs, data, pretrained.path)
    vae = VaeRecipe(from_pipeline=True) if has_vae(pretrained, cache_dir) else None
    factor = 1 if vae is None else config_scale_factor(vae_config(vae, pretrained, cache_dir))
    sides = tuple(side * factor for side in level_sides(unet["sample_size"], level_configs))
    num_levels = inner_levels(sides, train_levels, resolution)
    columns = set(LevelConfig.columns_from(level_configs))
    sees_text, has_classes = unet.get("cross_attention_dim") is not None, unet.get("num_class_embeds") is not None
    if has_classes and data.label_column is None:
        raise ValueError(
            f"{pretrained.path} is a class-conditional model: name the column with the classes with --label_column."
        )
    if not has_classes and data.label_column is not None:
        raise ValueError(
            f"{pretrained.path} has no classes: train it on captions with training/train_text_to_image_mdm.py and "
            "without --label_column, or start from a class-conditional model."
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
        levels=tuple(_as_mapping(level) for level in level_configs[:num_levels]),
        text_encoder=TextEncoderRecipe(from_pipeline=True) if sees_text else None,
        data=data,
        stages=(stage,),
        pretrained=pretrained,
        vae=vae,
        scheduler=scheduler_of_levels(scheduler, num_levels),
        use_ema=False,
    )


def scheduler_of_levels(scheduler: dict[str, Any], num_levels: int) -> dict[str, Any]:
    """Return a scheduler's config without the entries of levels beyond the inner `num_levels`."""
    entries = {"prediction_type": num_levels, "sigma_data": num_levels - 1}
    kept = dict(scheduler)
    for name, number in entries.items():
        if isinstance(values := scheduler.get(name), (list, tuple)):
            if number:
                kept[name] = list(values)[:number]
            else:
                del kept[name]
    return kept


def configs_with_frames(config: dict[str, Any], num_frames: int | None, name: str) -> tuple[LevelConfig, ...]:
    """Return the level configs of a saved model, with frames and temporal layers added if it is to generate clips.

    Args:
        config: config of its `NestedUNetModel`.
        num_frames: number of frames of the clips; None leaves the model as it is.
        name: name of its pipeline, for the message.

    Raises:
        ValueError: the model already generates clips, of another length.
    """
    level_configs = LevelConfig.levels_from(config)
    if num_frames is None or num_frames == level_configs[-1].num_frames:
        return level_configs
    if any(level.num_frames != 1 for level in level_configs):
        raise ValueError(
            f"--num_frames is {num_frames}, but {name} generates clips of {level_configs[-1].num_frames} frames; omit "
            f"it, or start from an image pipeline."
        )
    with torch.device("meta"):
        return NestedUNetModel(**config).to_video(num_frames).level_configs


def check_has_clips(level_configs: tuple[LevelConfig, ...], data: DataRecipe, name: str) -> None:
    """Refuse data without clips for a video model; image models can be trained on frames of clips.

    Raises:
        ValueError: says how to give the column with the clips.
    """
    if any(level.num_frames != 1 for level in level_configs) and data.video_column is None:
        raise ValueError(
            f"{name} is to generate clips: train it with training/train_text_to_video_mdm.py, and name the column "
            f"with the clips with --video_column."
        )


def read_configs(pretrained: PretrainedRecipe, cache_dir: str | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read the configs of a saved pipeline's `NestedUNetModel` and `MatryoshkaScheduler`, without its weights.

    Raises:
        ValueError: the components are of other classes, or there is no such pipeline.
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
            f"{pretrained.path} is not a saved pipeline: {error} Pass a folder that `save_pretrained` wrote, or a "
            f"Hub id."
        ) from error
    return configs[0], configs[1]


def inner_levels(sides: tuple[int, ...], train_levels: int | None, resolution: int | None) -> int:
    """Return how many inner levels of a model are to be trained: as requested, or all.

    Args:
        sides: sides in pixels of all levels of the model, innermost first.
        train_levels: the requested number.
        resolution: the requested side of the outermost level to train.

    Raises:
        ValueError: the model does not have these levels, or the two requests contradict each other.
    """
    if train_levels is not None and not 1 <= train_levels <= len(sides):
        raise ValueError(
            f"--train_levels is {train_levels}, but the model has {len(sides)} levels; pass 1 to {len(sides)}."
        )
    if resolution is not None:
        if resolution not in sides:
            raise ValueError(
                f"--resolution is {resolution}, but the levels of the model have {', '.join(map(str, sides))} pixels; "
                "pass one of these."
            )
        found = sides.index(resolution) + 1
        if train_levels is not None and train_levels != found:
            raise ValueError(
                f"--resolution {resolution} means {found} level(s), but --train_levels is {train_levels}; drop one."
            )
        return found
    return len(sides) if train_levels is None else train_levels


def image_sides(recipe: Recipe, cache_dir: str | None = None) -> tuple[int, ...]:
    """Return the image side in pixels of every level, innermost first; for latents, according to the autoencoder's
    config.

    Raises:
        ValueError: there is no such autoencoder.
    """
    factor = scale_factor_of(recipe, cache_dir)
    return tuple(side * factor for side in recipe.sides)


def count_images(data: DataRecipe, flag: str) -> int:
    """Return the number of images in one pass over the training data.

    Args:
        data: the training data.
        flag: the flag that needs the number, for the message.

    Raises:
        ValueError: the data are shards, whose number of images is unknown.
    """
    count = open_source(data).num_samples()
    if count is None:
        raise ValueError(
            f"{flag} counts passes over the data, but the number of images in shards is unknown; count in steps "
            "(--max_train_steps, --validation_steps)."
        )
    return count


def steps_for_passes(passes: int, num_images: int, images_per_step: int) -> int:
    """Return the number of optimizer steps for `passes` passes over the images, rounded up."""
    return math.ceil(passes * num_images / images_per_step)


def _as_mapping(level_config: LevelConfig) -> dict[str, Any]:
    """Return a level's config as in a recipe, without fields that are common to all levels."""
    plain = LevelConfig(
        level_config.block_out_channels, level_config.layers_per_block, level_config.attention_layers_per_block
    )
    needed = ("block_out_channels", "layers_per_block", "attention_layers_per_block")
    return {key: value for key, value in vars(level_config).items() if key in needed or value != getattr(plain, key)}
