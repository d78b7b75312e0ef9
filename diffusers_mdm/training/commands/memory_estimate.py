# SPDX-License-Identifier: Apache-2.0
"""Estimate of the memory that a stage needs on each process, without allocating it.

Weights, gradients, optimizer moments and averages follow from numbers of parameters. Activations are counted: the
model runs forward on fake tensors (shapes without contents) with the stage's own batch, and what autograd keeps for
the backward pass is added up. Temporary buffers of kernels and memory that the allocator leaves unused are not
included; plan for 20 % more.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from ...library_internals import FAKE_TENSORS, storage_address
from ...models.level_config import LevelConfig
from ...models.nested_unet import NestedUNetModel
from ..loop.stage_setup import freeze_levels
from ..modules.autoencoder import vae_config, vae_dtype
from ..modules.lora import add_lora
from ..precision import frozen_dtype
from ..recipe.clip_stages import inner_level_configs, joint_stage, stage_level_configs, trains_on_images
from ..recipe.recipe import Recipe
from ..recipe.stage import StageRecipe
from ..state.run import RunOptions

FP32_BYTES, HALF_BYTES = 4, 2
MOMENT_BYTES = 2 * FP32_BYTES  # moments of AdamW per weight


@dataclass(frozen=True)
class StageMemory:
    """Bytes that one stage needs on each process, without sharding.

    weights: of the U-Net; frozen weights are in the precision of the run if only LoRA is trained.
    gradients, moments: of the trained weights.
    averages: of the weights, if they are kept on the device.
    activations: kept from the forward pass for the backward pass; the peak, with gradient checkpointing.
    text_encoder: weights, and if it is trained gradients, moments and averages; None if its size is unknown.
    autoencoder: weights, for models on latents; the memory of encoding is freed before the U-Net runs.
    """

    weights: int
    gradients: int
    moments: int
    averages: int
    activations: int
    text_encoder: int | None
    autoencoder: int | None = 0

    @property
    def total(self) -> int:
        """Return the sum of all known parts."""
        return sum(value or 0 for value in vars(self).values())


def estimate_stage(
    recipe: Recipe,
    stage: StageRecipe,
    options: RunOptions,
    num_text_parameters: int | None,
    num_vae_parameters: int | None = 0,
) -> StageMemory:
    """Estimate the memory of training `stage`.

    Args:
        recipe: the recipe of the run.
        stage: one of its stages.
        options: options of the run.
        num_text_parameters: parameters of the text encoder in memory; 0 without one, None if unknown.
        num_vae_parameters: parameters of the autoencoder; 0 without one, None if unknown.
    """
    unet = fake_unet(recipe, stage.levels, stage.as_pictures)
    freeze(unet, recipe, stage)
    pictures = joint_stage(recipe, stage)
    with FAKE_TENSORS.get()(allow_non_fake_inputs=True):
        # Autocast supports the CPU, but not the meta device.
        unet = unet.to_empty(device="cpu")
        activations = activation_bytes(unet, recipe, stage, options)
        if pictures is not None:  # their backward pass comes before the clips' forward pass
            activations = max(activations, activation_bytes(unet, recipe, pictures, options))
    trained = count(unet, trained_only=True)
    frozen_bytes = HALF_BYTES if recipe.lora is not None and _is_half(recipe, options) else FP32_BYTES
    averaged = trained if recipe.lora is not None else count(unet)
    has_averages = recipe.use_ema and not options.offload_ema
    return StageMemory(
        weights=trained * FP32_BYTES + (count(unet) - trained) * frozen_bytes,
        gradients=trained * FP32_BYTES,
        moments=trained * MOMENT_BYTES,
        averages=averaged * FP32_BYTES if has_averages else 0,
        activations=activations,
        text_encoder=text_encoder_bytes(recipe, options, num_text_parameters),
        autoencoder=autoencoder_bytes(recipe, options, num_vae_parameters),
    )


def fake_unet(recipe: Recipe, num_levels: int, as_pictures: bool = False) -> NestedUNetModel:
    """Build the inner levels of the recipe's model on the meta device, where weights have shapes but no contents.

    `as_pictures` builds the levels as they are before they have frames.
    """
    rows = inner_level_configs(recipe, num_levels, as_pictures)
    with torch.device("meta"):
        unet = NestedUNetModel(**recipe.model, **LevelConfig.columns_from(rows))
        if recipe.lora is not None:
            add_lora(unet, recipe.lora)
    return unet.train()


def freeze(unet: NestedUNetModel, recipe: Recipe, stage: StageRecipe) -> None:
    """Freeze what is not trained in a stage: its frozen levels and what levels share, or everything except LoRA."""
    if recipe.lora is None:
        freeze_levels(unet, stage.frozen_levels)


def count(module: torch.nn.Module, trained_only: bool = False) -> int:
    """Count the parameters, or only the trained ones."""
    parameters = (value for value in module.parameters() if value.requires_grad or not trained_only)
    return sum(value.numel() for value in parameters)


def text_encoder_bytes(recipe: Recipe, options: RunOptions, num_parameters: int | None) -> int | None:
    """Estimate the memory of the text encoder: its weights, and if it is trained everything except activations."""
    if num_parameters is None:
        return None
    if not recipe.trains_text_encoder:
        return num_parameters * (HALF_BYTES if _is_half(recipe, options) else FP32_BYTES)
    averages = FP32_BYTES if recipe.use_ema and not options.offload_ema else 0
    return num_parameters * (2 * FP32_BYTES + MOMENT_BYTES + averages)


def autoencoder_bytes(recipe: Recipe, options: RunOptions, num_parameters: int | None) -> int | None:
    """Estimate the weights of the frozen autoencoder, which stays in float32 if it would overflow in float16."""
    if recipe.vae is None or num_parameters is None:
        return num_parameters
    config = vae_config(recipe.vae, recipe.pretrained, local_files_only=True)
    dtype = vae_dtype(frozen_dtype(_precision(recipe, options)), config)
    return num_parameters * dtype.itemsize


def activation_bytes(unet: NestedUNetModel, recipe: Recipe, stage: StageRecipe, options: RunOptions) -> int:
    """Count the bytes that a forward pass keeps for its backward pass; must be called inside `FakeTensorMode`.

    With gradient checkpointing these are the inputs of all layers, and what the largest layer keeps when it is rerun.
    """
    kept = _Pieces(unet.parameters())
    largest = 0

    def run_again_later(layer: Callable[..., Any], *inputs: Any) -> Any:
        nonlocal largest
        for tensor in inputs:
            if isinstance(tensor, torch.Tensor):
                kept.add(tensor)
        inside = _Pieces(unet.parameters())
        with inside.counting():
            output = layer(*inputs)
        largest = max(largest, inside.num_bytes)
        return output

    if options.gradient_checkpointing:
        unet.enable_gradient_checkpointing(run_again_later)
    dtype = torch.float16 if _precision(recipe, options) == "fp16" else torch.bfloat16
    with kept.counting(), torch.autocast("cpu", dtype=dtype, enabled=_is_half(recipe, options)):
        unet(**fake_inputs(unet, recipe, stage))
    return kept.num_bytes + largest


class _Pieces:
    """A count of memory in which each storage counts once, however many tensors use it; `parameters` do not count."""

    def __init__(self, parameters: Iterable[torch.Tensor]) -> None:
        # Storages are kept alive: the id of a freed one could be reused.
        self._counted = {storage_address(parameter): parameter.untyped_storage() for parameter in parameters}
        self.num_bytes = 0

    def add(self, tensor: torch.Tensor) -> torch.Tensor:
        """Count the memory of `tensor`, and return the tensor."""
        address = storage_address(tensor)
        if address not in self._counted:
            self._counted[address] = tensor.untyped_storage()
            self.num_bytes += self._counted[address].nbytes()
        return tensor

    @contextlib.contextmanager
    def counting(self) -> Iterator[None]:
        """Count whatever autograd saves inside the block."""
        with torch.autograd.graph.saved_tensors_hooks(self.add, lambda tensor: tensor):
            yield


def fake_inputs(unet: NestedUNetModel, recipe: Recipe, stage: StageRecipe) -> dict[str, Any]:
    """Make inputs with the shapes of the stage and captions of the maximum length."""
    sides = recipe.sides
    channels = unet.config["in_channels"]
    rows = stage.rows_per_level
    is_clip = not trains_on_images(recipe, stage)
    frames = [(row.num_frames,) if is_clip else () for row in stage_level_configs(recipe, stage)]
    inputs: dict[str, Any] = {
        "sample": [
            torch.empty(rows[level], channels, *frames[level], sides[level], sides[level])
            for level in range(stage.levels)
        ],
        "timestep": torch.zeros(rows[0], dtype=torch.int64),
    }
    width = unet.config["encoder_hid_dim"] or unet.config["cross_attention_dim"]
    if width is not None:
        length = recipe.max_sequence_length
        inputs["encoder_hidden_states"] = torch.empty(rows[0], length, width)
        inputs["encoder_attention_mask"] = torch.ones(rows[0], length, dtype=torch.bool)
    if unet.config["num_class_embeds"] is not None:
        inputs["class_labels"] = torch.zeros(rows[0], dtype=torch.int64)
    return inputs


def _precision(recipe: Recipe, options: RunOptions) -> str:
    return options.mixed_precision or recipe.mixed_precision


def _is_half(recipe: Recipe, options: RunOptions) -> bool:
    return _precision(recipe, options) != "no"
