# SPDX-License-Identifier: Apache-2.0
"""Training a small `AutoencoderKL`, for models on latents where no trained autoencoder fits the data.

The loss is the squared error of the reconstruction plus a small multiple of the KL divergence of the posterior
(Rombach et al. 2022, appendix G, without their perceptual and adversarial parts, which need trained networks):
reconstructions are somewhat blurred.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL

from ..data.batch import to_unit_range
from ..data.order import BatchOrder
from ..data.sources import open_training_images
from ..recipe.data import DataRecipe
from ..recipe.fields import COUNT, NOT_NEGATIVE, POSITIVE, check_ranges
from ..seeds import derive_seed
from ..state.complete_folders import complete_folder

logger = logging.getLogger(__name__)

NUM_MEASURED = 1024  # images from which the scale of the latents is measured
LOGGING_STEPS = 50


@dataclass(frozen=True)
class AutoencoderRecipe:
    """The settings of an autoencoder and its training.

    Attributes:
        resolution: side of the images in pixels.
        block_out_channels: channels at each resolution, finest first; with n entries, latents are 2^(n - 1) times
            smaller than images.
        latent_channels: channels of the latents.
        layers_per_block: residual layers at each resolution.
        norm_num_groups: groups of the group norms, which divide all channels.
        attention: whether the middle has attention.
        steps: optimizer steps.
        batch_size: images per step.
        learning_rate: of AdamW; decays to 0 along a cosine.
        kl_weight: weight of the KL divergence, per latent.
        seed: of the weights, the order of the images and the noise.
    """

    resolution: int = 64
    block_out_channels: tuple[int, ...] = (32, 64)
    latent_channels: int = 4
    layers_per_block: int = 1
    norm_num_groups: int = 8
    attention: bool = False
    steps: int = 1000
    batch_size: int = 32
    learning_rate: float = 2e-3
    kl_weight: float = 1e-4
    seed: int = 0

    def __post_init__(self) -> None:
        counted = ("resolution", "latent_channels", "layers_per_block", "norm_num_groups", "steps", "batch_size")
        check_ranges(self, {**dict.fromkeys(counted, COUNT), "learning_rate": POSITIVE, "kl_weight": NOT_NEGATIVE})
        wrong = [channels for channels in self.block_out_channels if channels < 1 or channels % self.norm_num_groups]
        if wrong or not self.block_out_channels:
            raise ValueError(
                f"`block_out_channels` is {list(self.block_out_channels)}; expected multiples of `norm_num_groups`, "
                f"{self.norm_num_groups}, one for each resolution."
            )
        factor = 2 ** (len(self.block_out_channels) - 1)
        if self.resolution % factor:
            raise ValueError(
                f"`resolution` is {self.resolution}, but latents are {factor} times smaller; expected a multiple."
            )


def build_autoencoder(recipe: AutoencoderRecipe) -> AutoencoderKL:
    """Build the autoencoder with random weights, which depend on the seed only."""
    number = len(recipe.block_out_channels)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(recipe.seed, 0))
        return AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * number,
            up_block_types=("UpDecoderBlock2D",) * number,
            block_out_channels=recipe.block_out_channels,
            layers_per_block=recipe.layers_per_block,
            latent_channels=recipe.latent_channels,
            norm_num_groups=recipe.norm_num_groups,
            sample_size=recipe.resolution,
            mid_block_add_attention=recipe.attention,
        )


def train_autoencoder(
    recipe: AutoencoderRecipe, data: DataRecipe, folder: Path, device: torch.device | str = "cpu"
) -> AutoencoderKL:
    """Train an autoencoder, measure the scale of its latents, and save it.

    Args:
        recipe: its settings.
        data: the images; captions and classes are not used.
        folder: where it is saved; must not exist. Nothing is left behind if training fails.
        device: where it is trained.

    Returns:
        The autoencoder, in evaluation mode.

    Raises:
        ValueError: the folder exists, or the data cannot be opened.
        FloatingPointError: the loss is not finite.
    """
    if folder.exists():
        raise ValueError(f"{folder} exists; name a new folder, or remove it.")
    vae = build_autoencoder(recipe).to(device)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=recipe.learning_rate)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, recipe.steps)
    generator = torch.Generator(device).manual_seed(derive_seed(recipe.seed, 1))
    with image_batches(recipe, data) as batches:
        for step in range(1, recipe.steps + 1):
            images = next(batches).to(device)
            error, divergence = losses(vae, images, generator)
            total = error + recipe.kl_weight * divergence
            if not torch.isfinite(total):
                raise FloatingPointError(f"The loss of step {step} is not finite. Lower the learning rate.")
            optimizer.zero_grad(set_to_none=True)
            total.backward()
            torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
            optimizer.step()
            decay.step()
            if step % LOGGING_STEPS == 0 or step == recipe.steps:
                logger.info("Step %d: squared error %.5f, KL %.3f per latent.", step, error, divergence)
        vae.eval().requires_grad_(False)
        measure_latents(vae, batches)
    with complete_folder(folder) as beside:
        vae.save_pretrained(beside)
    logger.info("Saved to %s.", folder)
    return vae


@contextlib.contextmanager
def image_batches(recipe: AutoencoderRecipe, data: DataRecipe) -> Iterator[Iterator[torch.Tensor]]:
    """Provide an endless iterator over batches `(B, 3, S, S)` in [-1, 1]."""
    order = BatchOrder(recipe.batch_size, seed=derive_seed(recipe.seed, 2))
    batches = open_training_images(data, recipe.resolution).batches(order, 0, 0)
    with contextlib.closing(batches):
        yield (to_unit_range(batch.pixels) for batch in batches)


def losses(
    vae: AutoencoderKL, images: torch.Tensor, generator: torch.Generator | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the mean squared error of reconstructions from sampled latents, and the mean KL divergence per latent.

    Args:
        vae: the autoencoder.
        images: `(B, 3, S, S)` in [-1, 1].
        generator: of the sampled latents.
    """
    posterior = vae.encode(images).latent_dist
    error = (vae.decode(posterior.sample(generator)).sample - images).square().mean()
    divergence = 0.5 * (posterior.mean.square() + posterior.var - 1.0 - posterior.logvar).mean()
    return error, divergence


@torch.no_grad()
def measure_latents(vae: AutoencoderKL, batches: Iterator[torch.Tensor]) -> None:
    """Register the `scaling_factor` and `shift_factor` with which latents have mean 0 and variance 1."""
    latents: list[torch.Tensor] = []
    while sum(map(len, latents)) < NUM_MEASURED:
        latents.append(vae.encode(next(batches).to(vae.device)).latent_dist.mode())
    together = torch.cat(latents)
    mean, deviation = float(together.mean()), float(together.std())
    vae.register_to_config(scaling_factor=1.0 / max(deviation, 1e-6), shift_factor=mean)
