# SPDX-License-Identifier: Apache-2.0
"""The methods that are compared: the recipes of their parts, and what one image costs in training."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks.measuring import count_flops
from benchmarks.paper.shared_features import Way, without_features
from diffusers_mdm import MatryoshkaScheduler
from diffusers_mdm.schedulers.predictions import shift_signal_power
from diffusers_mdm.training.loop.autoencoder import AutoencoderRecipe, build_autoencoder, losses
from diffusers_mdm.training.loop.start import build_unet
from diffusers_mdm.training.recipe.data import DataRecipe
from diffusers_mdm.training.recipe.loading import load_recipe
from diffusers_mdm.training.recipe.pretrained import VaeRecipe
from diffusers_mdm.training.recipe.recipe import Recipe
from diffusers_mdm.training.recipe.stage import PlateauRecipe, StageRecipe

RECIPES = Path(__file__).parent / "recipes"
SIDE, BASE = 32, 16  # pixels of the images, and of the smallest level
AUTOENCODER = AutoencoderRecipe(resolution=SIDE, block_out_channels=(16, 16), latent_channels=4)
# The recipes of each method, in the order in which they draw.
PARTS: Mapping[str, tuple[str, ...]] = {
    "mdm": ("mdm",),
    "plain": ("plain",),
    "cascade": ("cascade_base", "cascade_upscaler"),
    "latent": ("latent",),
    "mdm_three": ("mdm_three",),
}


@dataclasses.dataclass(frozen=True)
class Changes:
    """How a row differs from its method.

    Attributes:
        stage: fields of all stages.
        scheduler: arguments of the scheduler.
        inner_share: train the inner level alone first, for this share of the operations (mdm).
        until_plateau: end that first stage, of at most that many steps, when its validation loss stops improving.
        data_share: train on this share of the images.
        no_features: on these ways levels give each other no features.
    """

    stage: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    scheduler: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    inner_share: float = 0.0
    until_plateau: PlateauRecipe | None = None
    data_share: float = 1.0
    no_features: tuple[Way, ...] = ()


def shifted_betas(ratio: float, shift_power: float = 1.0) -> list[float]:
    """Return the betas of the cosine schedule whose signal-to-noise ratio is divided by ratio^shift_power.

    This is how the schedule of an image of `ratio` times the side is shifted (Hoogeboom et al. 2023, section 3.1;
    their shift of the log SNR by 2 log(ratio) is `shift_power` 2).
    """
    powers = shift_signal_power(MatryoshkaScheduler().alphas_cumprod.cpu().double(), ratio, shift_power)
    before = torch.cat([powers.new_ones(1), powers[:-1]])
    return [float(beta) for beta in (1 - powers / before).clamp(1e-8, 0.9999)]


def recipes_of(method: str, data: DataRecipe, classes: int | None, vae: Path | None) -> tuple[Recipe, ...]:
    """Return the recipes of a method's parts on a data set.

    Args:
        method: of `PARTS`.
        data: the images.
        classes: number of classes; None trains without.
        vae: the autoencoder's folder, for latents.
    """
    return tuple(_on_data(load_recipe(RECIPES / f"{name}.yaml"), data, classes, vae) for name in PARTS[method])


def _on_data(recipe: Recipe, data: DataRecipe, classes: int | None, vae: Path | None) -> Recipe:
    model = {**recipe.model, "num_class_embeds": None if classes is None else classes + 1}
    scheduler = dict(recipe.scheduler)
    if recipe.vae is None and recipe.sample_size > BASE:
        scheduler["trained_betas"] = shifted_betas(recipe.sample_size / BASE)
    encoder = None if recipe.vae is None else VaeRecipe(pretrained=str(vae))
    return dataclasses.replace(recipe, model=model, scheduler=scheduler, data=data, vae=encoder)


def changed(recipe: Recipe, changes: Changes, steps: int) -> Recipe:
    """Return a recipe with a row's changes, for `steps` steps of its last stage's cost.

    With `inner_share` the inner level is trained alone first; its steps are cheaper, so there are more of them.
    """
    last = dataclasses.replace(recipe.stages[-1], steps=steps, **changes.stage)
    stages: tuple[StageRecipe, ...] = (last,)
    if changes.inner_share:
        inner = dataclasses.replace(last, name="inner", levels=1, level_weights=None, batch_fractions=None)
        ratio = flops_per_image(recipe, last) / flops_per_image(recipe, inner)
        inner = dataclasses.replace(
            inner, steps=max(1, round(steps * changes.inner_share * ratio)), until_plateau=changes.until_plateau
        )
        stages = (inner, dataclasses.replace(last, steps=max(1, steps - round(steps * changes.inner_share))))
    return dataclasses.replace(recipe, stages=stages, scheduler={**recipe.scheduler, **changes.scheduler})


def num_parameters(method: str) -> int:
    """Count the parameters of all networks that a method draws with, its autoencoder included."""
    data = load_recipe(RECIPES / "mdm.yaml").data
    recipes = recipes_of(method, data, 4, Path("autoencoder"))
    networks: list[torch.nn.Module] = [build_unet(recipe, len(recipe.levels)) for recipe in recipes]
    networks += [build_autoencoder(AUTOENCODER)] if method == "latent" else []
    return sum(parameter.numel() for network in networks for parameter in network.parameters())


def flops_per_image(recipe: Recipe, stage: StageRecipe, no_features: tuple[Way, ...] = ()) -> float:
    """Count the operations of one training image: forward and backward of the U-Net, and encoding for latents.

    Optimizer and averages are left out: their cost does not depend on the images. Each model is counted once.
    """
    key = repr((recipe.model, recipe.levels, recipe.vae is None, stage.levels, stage.samples_per_level, no_features))
    if key not in _flops_of_models:
        with without_features(no_features):
            _flops_of_models[key] = _count_flops_per_image(recipe, stage)
    return _flops_of_models[key]


_flops_of_models: dict[str, float] = {}


def _count_flops_per_image(recipe: Recipe, stage: StageRecipe) -> float:
    samples = stage.samples_per_level
    with torch.device("meta"):
        unet = build_unet(dataclasses.replace(recipe, zero_init=False), stage.levels).train()
        inputs: dict[str, Any] = {"timestep": torch.zeros(samples[0], dtype=torch.int64)}
        inputs["sample"] = [
            torch.zeros(number, unet.config.in_channels, side, side)
            for number, side in zip(samples, unet.sample_sizes, strict=False)
        ]
        if unet.config.num_class_embeds is not None:
            inputs["class_labels"] = torch.zeros(samples[0], dtype=torch.int64)

    def step() -> None:
        torch.stack([level.mean() for level in unet(**inputs).sample]).sum().backward()

    encoding = 0.0 if recipe.vae is None else _counted(_encode)
    return _counted(step) / samples[0] + encoding


def autoencoder_flops_per_image() -> float:
    """Count the operations of one image in training the autoencoder."""
    return _counted(lambda: losses(build_autoencoder(AUTOENCODER), torch.zeros(1, 3, SIDE, SIDE))[0].backward())


def _encode() -> None:
    with torch.no_grad():
        build_autoencoder(AUTOENCODER).encode(torch.zeros(1, 3, SIDE, SIDE))


def _counted(call: Callable[[], Any]) -> float:
    return float(count_flops(call))
