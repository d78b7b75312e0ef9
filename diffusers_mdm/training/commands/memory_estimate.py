# SPDX-License-Identifier: Apache-2.0
"""How much memory a stage takes on each process, without taking it.

Weights, gradients, the optimizer's moments and averages follow from numbers of parameters. Activations are counted:
the model runs forward on fake tensors, which have shapes but no contents, with the stage's own batch, and what
autograd keeps for the backward pass is added up. What kernels need for the moment and what the allocator leaves unused
is not in these numbers; plan for a fifth more.
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
from ..recipe.clip_rows import inner_rows, joint_stage, stage_rows, trains_on_pictures
from ..recipe.recipe import Recipe
from ..recipe.stage import StageRecipe
from ..state.run import RunOptions

FP32_BYTES, HALF_BYTES = 4, 2
MOMENT_BYTES = 2 * FP32_BYTES  # of AdamW, a weight


@dataclass(frozen=True)
class StageMemory:
    """Bytes that one stage takes on each process, without sharding.

    weights: of the U-Net; frozen ones in the precision of the run where only LoRA is trained.
    gradients, moments: of the trained weights.
    averages: of the weights, where they are on the device.
    activations: kept from the forward for the backward pass; with gradient checkpointing its peak.
    text_encoder: weights, and where it is trained gradients, moments and averages; None if its size is not known.
    autoencoder: weights, of a model of latents; what encoding takes is given back before the U-Net runs.
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
        """All that is known."""
        return sum(value or 0 for value in vars(self).values())


def estimate_stage(
    recipe: Recipe,
    stage: StageRecipe,
    options: RunOptions,
    num_text_parameters: int | None,
    num_vae_parameters: int | None = 0,
) -> StageMemory:
    """What training `stage` takes.

    Args:
        recipe: the run.
        stage: one of its stages.
        options: of the run.
        num_text_parameters: of the text encoder in memory; 0 without one, None if unknown.
        num_vae_parameters: of the autoencoder; the same.
    """
    unet = fake_unet(recipe, stage.levels, stage.as_pictures)
    freeze(unet, recipe, stage)
    pictures = joint_stage(recipe, stage)
    with FAKE_TENSORS.get()(allow_non_fake_inputs=True):
        # Autocast knows the CPU, but not the meta device.
        unet = unet.to_empty(device="cpu")
        activations = activation_bytes(unet, recipe, stage, options)
        if pictures is not None:  # whose backward pass comes before the clips' forward pass
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
    """The inner levels of the recipe's model on the meta device, where weights have shapes but no contents.

    `as_pictures` means levels as they are before they have frames.
    """
    rows = inner_rows(recipe, num_levels, as_pictures)
    with torch.device("meta"):
        unet = NestedUNetModel(**recipe.model, **LevelConfig.columns_from(rows))
        if recipe.lora is not None:
            add_lora(unet, recipe.lora)
    return unet.train()


def freeze(unet: NestedUNetModel, recipe: Recipe, stage: StageRecipe) -> None:
    """Mark what does not learn in a stage: its frozen levels and what levels share, or all but LoRA."""
    if recipe.lora is None:
        freeze_levels(unet, stage.frozen_levels)


def count(module: torch.nn.Module, trained_only: bool = False) -> int:
    """Number of parameters, or of those that learn."""
    parameters = (value for value in module.parameters() if value.requires_grad or not trained_only)
    return sum(value.numel() for value in parameters)


def text_encoder_bytes(recipe: Recipe, options: RunOptions, num_parameters: int | None) -> int | None:
    """Weights of a frozen text encoder, or all that a trained one takes beside its activations."""
    if num_parameters is None:
        return None
    if not recipe.trains_text_encoder:
        return num_parameters * (HALF_BYTES if _is_half(recipe, options) else FP32_BYTES)
    averages = FP32_BYTES if recipe.use_ema and not options.offload_ema else 0
    return num_parameters * (2 * FP32_BYTES + MOMENT_BYTES + averages)


def autoencoder_bytes(recipe: Recipe, options: RunOptions, num_parameters: int | None) -> int | None:
    """Weights of the frozen autoencoder, which stays in float32 where it would overflow in float16."""
    if recipe.vae is None or num_parameters is None:
        return num_parameters
    config = vae_config(recipe.vae, recipe.pretrained, local_files_only=True)
    dtype = vae_dtype(frozen_dtype(_precision(recipe, options)), config)
    return num_parameters * dtype.itemsize


def activation_bytes(unet: NestedUNetModel, recipe: Recipe, stage: StageRecipe, options: RunOptions) -> int:
    """Bytes that one forward pass keeps for its backward pass; to be called inside `FakeTensorMode`.

    With gradient checkpointing: the inputs of all layers, and what the largest layer keeps when it is run again.
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
    """Pieces of memory, each counted once however many tensors lie in it; those of `parameters` not at all."""

    def __init__(self, parameters: Iterable[torch.Tensor]) -> None:
        # Storages are held on to: one that were freed could give its number to another.
        self._counted = {storage_address(parameter): parameter.untyped_storage() for parameter in parameters}
        self.num_bytes = 0

    def add(self, tensor: torch.Tensor) -> torch.Tensor:
        """Count the memory of `tensor`, and give it back."""
        address = storage_address(tensor)
        if address not in self._counted:
            self._counted[address] = tensor.untyped_storage()
            self.num_bytes += self._counted[address].nbytes()
        return tensor

    @contextlib.contextmanager
    def counting(self) -> Iterator[None]:
        """Inside the block, count whatever autograd saves."""
        with torch.autograd.graph.saved_tensors_hooks(self.add, lambda tensor: tensor):
            yield


def fake_inputs(unet: NestedUNetModel, recipe: Recipe, stage: StageRecipe) -> dict[str, Any]:
    """Inputs of the shapes that the stage has, with captions of the greatest length."""
    sides = recipe.sides
    channels = unet.config["in_channels"]
    rows = stage.rows_per_level
    is_clip = not trains_on_pictures(recipe, stage)
    frames = [(row.num_frames,) if is_clip else () for row in stage_rows(recipe, stage)]
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
