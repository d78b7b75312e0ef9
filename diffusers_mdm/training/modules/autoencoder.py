# SPDX-License-Identifier: Apache-2.0
"""The frozen autoencoder of a run on latents: loading it, and checking that it fits the model."""

from collections.abc import Mapping
from typing import Any, cast

import torch
from diffusers import AutoencoderKL

from ...pipelines.drawing.latent_space import clips_to_images, config_scale_factor
from ...pipelines.pipeline_mdm import MDMPipeline
from ...schedulers.scheduling_matryoshka import MatryoshkaScheduler
from ..recipe.pretrained import VaeRecipe
from ..recipe.recipe import PretrainedRecipe, Recipe

PIPELINE_FOLDER = "vae"  # the subfolder of a pipeline
IMAGE_CHANNELS = 3


def open_vae(recipe: Recipe, cache_dir: str | None = None) -> AutoencoderKL | None:
    """Load the recipe's autoencoder, frozen, in float32 on the CPU; None for a model on pixels.

    Raises:
        ValueError: it does not exist, does not fit the recipe's model, or the pipeline that the recipe starts from
            works on other latents or on pixels.
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
    """Return `path`, `subfolder` and `revision` of a recipe's autoencoder."""
    if vae.pretrained is not None:
        return {"path": vae.pretrained, "subfolder": vae.subfolder, "revision": vae.revision}
    assert pipeline is not None  # guaranteed by the recipe's checks
    return {"path": pipeline.path, "subfolder": PIPELINE_FOLDER, "revision": pipeline.revision}


def _variant(recipe: Recipe) -> str | None:
    if recipe.vae is not None and recipe.vae.pretrained is not None:
        return recipe.vae.variant
    return None if recipe.pretrained is None else recipe.pretrained.variant


def vae_config(
    vae: VaeRecipe, pipeline: PretrainedRecipe | None, cache_dir: str | None = None, local_files_only: bool = False
) -> dict[str, Any]:
    """Read the config of an autoencoder, without its weights; missing keys have the class's defaults.

    Args:
        vae: where the autoencoder is.
        pipeline: the pipeline that the recipe starts from.
        cache_dir: folder for downloaded files.
        local_files_only: download nothing.

    Raises:
        ValueError: there is no such autoencoder, or it is of another class.
    """
    where = source_of(vae, pipeline)
    path = where.pop("path")
    try:
        found = AutoencoderKL.load_config(path, **where, cache_dir=cache_dir, local_files_only=local_files_only)
    except OSError as error:
        inside = f" (subfolder {where['subfolder']!r})" if where["subfolder"] else ""
        raise ValueError(
            f"`vae`: there is no autoencoder in {path}{inside}: {error} Pass the folder or Hub id of a saved "
            f"AutoencoderKL; in a whole pipeline it is in the subfolder `vae` (`vae.subfolder`)."
        ) from error
    saved = cast(dict[str, Any], found)
    if saved.get("_class_name", AutoencoderKL.__name__) != AutoencoderKL.__name__:
        raise ValueError(f"`vae`: {path} is a {saved['_class_name']}; training needs an AutoencoderKL.")
    return {**_defaults(), **saved}


def _defaults() -> dict[str, Any]:
    with torch.device("meta"):
        config = AutoencoderKL().config
    # diffusers' own entries refer to this object.
    return {name: value for name, value in config.items() if name[0] != "_"}


def check_fits(recipe: Recipe, config: Mapping[str, Any]) -> None:
    """Check that an autoencoder has as many latent channels as the recipe's model, and takes RGB images.

    Raises:
        ValueError: names the channels of both.
    """
    latents = config["latent_channels"]
    for name in ("in_channels", "out_channels"):
        channels = recipe.model.get(name, IMAGE_CHANNELS)
        if channels != latents:
            raise ValueError(
                f"`model.{name}` is {channels}, but the latents of the autoencoder have {latents} channels "
                f"(`latent_channels`); set `in_channels` and `out_channels` of the model to {latents}, or use "
                f"another `vae`."
            )
    if config["in_channels"] != IMAGE_CHANNELS:
        raise ValueError(
            f"`vae`: the autoencoder takes images with {config['in_channels']} channels, but images are read with "
            f"{IMAGE_CHANNELS}."
        )


def check_same_space(recipe: Recipe, pipeline: PretrainedRecipe, cache_dir: str | None = None) -> None:
    """Check that a model on latents is not trained on pixels, or vice versa, or on latents of another size.

    Raises:
        ValueError: says what to write into the recipe.
    """
    own = has_vae(pipeline, cache_dir)
    if own and recipe.vae is None:
        raise ValueError(
            f"{pipeline.path} has an autoencoder: its model denoises latents. Add `vae: {{from_pipeline: true}}` "
            f"to the recipe, or name another autoencoder with the same latents with `vae.pretrained` "
            "(--pretrained_vae_model_name_or_path)."
        )
    if recipe.vae is None:
        return
    if not own:
        raise ValueError(
            f"{pipeline.path} has no autoencoder: its model denoises pixels. Omit `vae` "
            f"(--pretrained_vae_model_name_or_path), or start from a pipeline with an autoencoder, or from scratch."
        )
    factors = [
        config_scale_factor(vae_config(vae, pipeline, cache_dir))
        for vae in (VaeRecipe(from_pipeline=True), recipe.vae)
    ]
    if factors[0] != factors[1]:
        raise ValueError(
            f"`vae`: the latents of the autoencoder are {factors[1]} times smaller than images, those of "
            f"{pipeline.path} {factors[0]} times; use an autoencoder with the same factor."
        )


def has_vae(pipeline: PretrainedRecipe, cache_dir: str | None = None) -> bool:
    """Return whether a saved pipeline has an autoencoder; reads only its index.

    Raises:
        ValueError: there is no such pipeline.
    """
    try:
        index = MDMPipeline.load_config(pipeline.path, cache_dir=cache_dir, revision=pipeline.revision)
    except OSError as error:
        raise ValueError(
            f"{pipeline.path} is not a saved pipeline: {error} Pass a folder that `save_pretrained` wrote, or a "
            f"Hub id."
        ) from error
    return bool((index.get("vae") or [None, None])[1])


def check_clipping(recipe: Recipe, scheduler: MatryoshkaScheduler) -> None:
    """Check that the scheduler does not clip latents.

    Raises:
        ValueError: says how to turn clipping off.
    """
    if recipe.vae is not None and clips_to_images(scheduler):
        raise ValueError(
            "The scheduler clips predictions to [-1, 1], but latents of unit variance exceed that range: set "
            "`scheduler: {clip_sample: false}` in the recipe, or in the scheduler_config.json of the pipeline that "
            "the run starts from."
        )


def scale_factor_of(recipe: Recipe, cache_dir: str | None = None, local_files_only: bool = False) -> int:
    """Return the number of pixels per latent along a side, from the autoencoder's config; 1 for a model on pixels.

    Raises:
        ValueError: as for `vae_config`.
    """
    if recipe.vae is None:
        return 1
    return config_scale_factor(vae_config(recipe.vae, recipe.pretrained, cache_dir, local_files_only))


def count_vae_parameters(recipe: Recipe) -> int | None:
    """Count the parameters of the autoencoder: 0 without one, None if its config is not on this machine."""
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
    """Return the dtype of a frozen autoencoder: that of all frozen weights, or float32 if float16 would overflow."""
    return torch.float32 if weight_dtype == torch.float16 and config["force_upcast"] else weight_dtype
