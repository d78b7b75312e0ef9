# SPDX-License-Identifier: Apache-2.0
"""The frozen autoencoder of a run over latents: where it comes from, and whether it fits the model."""

from collections.abc import Mapping
from typing import Any, cast

import torch
from diffusers import AutoencoderKL

from ...pipelines.drawing.latent_space import clips_to_pictures, config_scale_factor
from ...pipelines.pipeline_mdm import MDMPipeline
from ...schedulers.scheduling_matryoshka import MatryoshkaScheduler
from ..recipe.recipe import PretrainedRecipe, Recipe
from ..recipe.vae import VaeRecipe

PIPELINE_FOLDER = "vae"  # where pipelines keep theirs
PICTURE_CHANNELS = 3


def open_vae(recipe: Recipe, cache_dir: str | None = None) -> AutoencoderKL | None:
    """The recipe's autoencoder, frozen, in float32 on the CPU; None for a model of pixels.

    Raises:
        ValueError: there is none where the recipe says, it does not fit the recipe's model, or the pipeline that the
            recipe starts from works in another space.
    """
    if recipe.pretrained is not None:
        check_same_space(recipe, recipe.pretrained, cache_dir)
    if recipe.vae is None:
        return None
    config = vae_config(recipe.vae, recipe.pretrained, cache_dir)
    check_fits(recipe, config)
    where = source_of(recipe.vae, recipe.pretrained)
    vae: AutoencoderKL = AutoencoderKL.from_pretrained(
        where.pop("path"), **where, variant=_variant(recipe), cache_dir=cache_dir, torch_dtype=torch.float32
    )
    vae.eval().requires_grad_(False)
    return vae


def source_of(vae: VaeRecipe, pipeline: PretrainedRecipe | None) -> dict[str, str | None]:
    """`path`, `subfolder` and `revision` of a recipe's autoencoder."""
    if vae.pretrained is not None:
        return {"path": vae.pretrained, "subfolder": vae.subfolder, "revision": vae.revision}
    assert pipeline is not None  # the recipe has checked that
    return {"path": pipeline.path, "subfolder": PIPELINE_FOLDER, "revision": pipeline.revision}


def _variant(recipe: Recipe) -> str | None:
    if recipe.vae is not None and recipe.vae.pretrained is not None:
        return recipe.vae.variant
    return None if recipe.pretrained is None else recipe.pretrained.variant


def vae_config(
    vae: VaeRecipe, pipeline: PretrainedRecipe | None, cache_dir: str | None = None, local_files_only: bool = False
) -> dict[str, Any]:
    """The config of an autoencoder, whose weights are not read; what a file leaves out has the class's default.

    Args:
        vae: where it is.
        pipeline: that the recipe starts from.
        cache_dir: where downloaded files are kept.
        local_files_only: download nothing.

    Raises:
        ValueError: there is none, or it is of another class.
    """
    where = source_of(vae, pipeline)
    path = where.pop("path")
    try:
        found = AutoencoderKL.load_config(path, **where, cache_dir=cache_dir, local_files_only=local_files_only)
    except OSError as error:
        inside = f" (subfolder {where['subfolder']!r})" if where["subfolder"] else ""
        raise ValueError(
            f"`vae`: there is no autoencoder in {path}{inside}: {error} Give the folder or Hub id of a "
            "saved AutoencoderKL; of a whole pipeline it is the folder `vae` (`vae.subfolder`)."
        ) from error
    saved = cast(dict[str, Any], found)
    if saved.get("_class_name", AutoencoderKL.__name__) != AutoencoderKL.__name__:
        raise ValueError(f"`vae`: {path} is a {saved['_class_name']}; training needs an AutoencoderKL.")
    return {**_defaults(), **saved}


def _defaults() -> dict[str, Any]:
    with torch.device("meta"):
        config = AutoencoderKL().config
    # What diffusers notes there for itself is about this one.
    return {name: value for name, value in config.items() if name[0] != "_"}


def check_fits(recipe: Recipe, config: Mapping[str, Any]) -> None:
    """Refuse an autoencoder of other latents than the recipe's model denoises, or of other pictures than colours.

    Raises:
        ValueError: names the channels of both.
    """
    latents = config["latent_channels"]
    for name in ("in_channels", "out_channels"):
        channels = recipe.model.get(name, PICTURE_CHANNELS)
        if channels != latents:
            raise ValueError(
                f"`model.{name}` is {channels}, but the latents of the autoencoder have {latents} channels "
                f"(`latent_channels`); set `in_channels` and `out_channels` of the model to {latents}, or take "
                "another `vae`."
            )
    if config["in_channels"] != PICTURE_CHANNELS:
        raise ValueError(
            f"`vae`: the autoencoder takes pictures of {config['in_channels']} channels; pictures are read with "
            f"{PICTURE_CHANNELS}."
        )


def check_same_space(recipe: Recipe, pipeline: PretrainedRecipe, cache_dir: str | None = None) -> None:
    """Refuse to train a model of latents on pixels, the other way round, or on latents of another size.

    Raises:
        ValueError: says what to write into the recipe.
    """
    own = has_vae(pipeline, cache_dir)
    if own and recipe.vae is None:
        raise ValueError(
            f"{pipeline.path} has an autoencoder: its model denoises latents. Add `vae: {{from_pipeline: true}}` to "
            "the recipe, or name another autoencoder of such latents with `vae.pretrained` "
            "(--pretrained_vae_model_name_or_path)."
        )
    if recipe.vae is None:
        return
    if not own:
        raise ValueError(
            f"{pipeline.path} has no autoencoder: its model denoises pixels. Leave out `vae` "
            "(--pretrained_vae_model_name_or_path), or start from a pipeline of latents, or from scratch."
        )
    factors = [
        config_scale_factor(vae_config(vae, pipeline, cache_dir))
        for vae in (VaeRecipe(from_pipeline=True), recipe.vae)
    ]
    if factors[0] != factors[1]:
        raise ValueError(
            f"`vae`: the autoencoder makes pictures {factors[1]} times smaller, that of {pipeline.path} {factors[0]} "
            "times; take one of the same kind."
        )


def has_vae(pipeline: PretrainedRecipe, cache_dir: str | None = None) -> bool:
    """Whether a saved pipeline has an autoencoder; only its index is read.

    Raises:
        ValueError: there is no such pipeline.
    """
    try:
        index = MDMPipeline.load_config(pipeline.path, cache_dir=cache_dir, revision=pipeline.revision)
    except OSError as error:
        raise ValueError(
            f"{pipeline.path} is no saved pipeline: {error} Give a folder that `save_pretrained` wrote, or a Hub id."
        ) from error
    return bool((index.get("vae") or [None, None])[1])


def check_clipping(recipe: Recipe, scheduler: MatryoshkaScheduler) -> None:
    """Refuse a scheduler that would cut off latents.

    Raises:
        ValueError: says how it does not.
    """
    if recipe.vae is not None and clips_to_pictures(scheduler):
        raise ValueError(
            "The scheduler clips what is predicted to [-1, 1], but latents of unit variance reach beyond that: set "
            "`scheduler: {clip_sample: false}` in the recipe, or in the scheduler_config.json of the pipeline that "
            "the run starts from."
        )


def scale_factor_of(recipe: Recipe, cache_dir: str | None = None, local_files_only: bool = False) -> int:
    """Pixels for one latent along a side, by the autoencoder's config; 1 for a model of pixels.

    Raises:
        ValueError: as `vae_config`.
    """
    if recipe.vae is None:
        return 1
    return config_scale_factor(vae_config(recipe.vae, recipe.pretrained, cache_dir, local_files_only))


def count_vae_parameters(recipe: Recipe) -> int | None:
    """Parameters of the autoencoder: 0 without one, None if its config is not on this machine."""
    if recipe.vae is None:
        return 0
    try:
        config = vae_config(recipe.vae, recipe.pretrained, local_files_only=True)
    except ValueError:
        return None
    with torch.device("meta"):
        vae = AutoencoderKL.from_config(config)
    return sum(value.numel() for value in vae.parameters())


def vae_dtype(weight_dtype: torch.dtype, config: Mapping[str, Any]) -> torch.dtype:
    """The dtype of a frozen autoencoder: that of all frozen weights, or float32 where float16 would overflow."""
    return torch.float32 if weight_dtype == torch.float16 and config["force_upcast"] else weight_dtype
