# SPDX-License-Identifier: Apache-2.0
"""Estimate of the memory that a stage needs on each process, without allocating it.

Weights, gradients, optimizer moments and averages follow from numbers of parameters. Activations are counted: the
model runs forward on fake tensors (shapes without contents) with the stage's own batch, and what autograd keeps for
the backward pass is added up. Temporary buffers of kernels and memory that the allocator leaves unused are not
included; plan for 20 % more.
"""

import contextlib
import math
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import torch

from ...library_internals import FAKE_TENSORS, storage_address
from ...models.level import Level
from ...models.level_config import LevelConfig
from ...models.nested_unet import NestedUNetModel
from ...pyramid import Size
from ..loop.stage_setup import checkpointed_modules, freeze_levels
from ..modules.autoencoder import vae_config, vae_dtype
from ..modules.lora import add_lora
from ..optimizers.registry import family_of
from ..precision import frozen_dtype
from ..recipe.buckets import level_buckets
from ..recipe.clip_stages import inner_level_configs, joint_stage, stage_level_configs, trains_on_images
from ..recipe.recipe import Recipe
from ..recipe.stage import StageRecipe
from ..state.run import RunOptions

FP32_BYTES, HALF_BYTES = 4, 2


@dataclass(frozen=True)
class StageMemory:
    """Bytes that one stage needs on each process, without sharding.

    weights: of the U-Net; frozen weights are in the precision of the run if only LoRA is trained.
    gradients, moments: of the trained weights; moments are the state of the optimizer.
    averages: of the weights, if they are kept on the device.
    activations: kept from the forward pass for the backward pass; the peak, with gradient checkpointing.
    text_encoder: weights, and if it is trained gradients, moments and averages; None if its size is unknown.
    autoencoder: weights, for models on latents; the memory of encoding is freed before the U-Net runs.
    With the option `offload`, both are 0 if frozen: they are in CPU memory while the U-Net runs.
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


@dataclass(frozen=True)
class LayerActivations:
    """Memory that one layer needs for its backward pass: bytes of storages, by their address.

    level: the level that the layer is in.
    inputs: its inputs, which are all that is kept if it is checkpointed.
    inside: everything that it keeps without checkpointing.
    """

    level: int
    inputs: dict[int, int]
    inside: dict[int, int]


@dataclass(frozen=True)
class Activations:
    """Memory that a forward pass keeps for its backward pass, from which follows the memory of any choice of levels
    for gradient checkpointing.

    outside: bytes of storages by address, for everything that is never checkpointed.
    layers: the layers that can be.
    num_levels: number of levels that ran.
    """

    outside: dict[int, int] = field(default_factory=dict)
    layers: tuple[LayerActivations, ...] = ()
    num_levels: int = 1

    def num_bytes(self, checkpointed: Collection[int] = ()) -> int:
        """Return the peak with these levels checkpointed: what is kept, and what the largest of their layers keeps
        when it is rerun.
        """
        kept, largest = dict(self.outside), 0
        for layer in self.layers:
            if layer.level in checkpointed:
                kept.update(layer.inputs)
                largest = max(largest, sum(layer.inside.values()))
            else:
                kept.update(layer.inside)
        return sum(kept.values()) + largest


def stage_activations(recipe: Recipe, stage: StageRecipe, options: RunOptions) -> list[Activations]:
    """Return the activations of the forward passes of a stage, which come one after another: that of its images or
    clips, and that of its `joint_images`, if any.
    """
    unet = fake_unet(recipe, stage.levels, stage.as_images)
    freeze(unet, recipe, stage)
    images = joint_stage(recipe, stage)
    with FAKE_TENSORS.get()(allow_non_fake_inputs=True):
        # Autocast supports the CPU, but not the meta device.
        unet = unet.to_empty(device="cpu")
        return [
            activations_of(unet, recipe, part, options) for part in ([stage] if images is None else [stage, images])
        ]


def peak_activations(passes: Iterable[Activations], checkpointed: Collection[int]) -> int:
    """Return the bytes of the largest of several passes, with these levels checkpointed."""
    return max(one.num_bytes(checkpointed) for one in passes)


def estimate_stage(
    recipe: Recipe,
    stage: StageRecipe,
    options: RunOptions,
    num_text_parameters: int | None,
    num_vae_parameters: int | None = 0,
    passes: Iterable[Activations] | None = None,
) -> StageMemory:
    """Estimate the memory of training `stage`.

    Args:
        recipe: the recipe of the run.
        stage: one of its stages.
        options: options of the run.
        num_text_parameters: parameters of the text encoder in memory; 0 without one, None if unknown.
        num_vae_parameters: parameters of the autoencoder; 0 without one, None if unknown.
        passes: result of `stage_activations`; None to compute it.
    """
    unet = fake_unet(recipe, stage.levels, stage.as_images)
    freeze(unet, recipe, stage)
    if passes is None:
        passes = stage_activations(recipe, stage, options)
    trained = count(unet, trained_only=True)
    family = family_of(recipe.optimizer)
    frozen_bytes = HALF_BYTES if recipe.lora is not None and _is_half(recipe, options) else FP32_BYTES
    averaged = trained if recipe.lora is not None else count(unet)
    copies = 0 if options.offload_ema else num_averages(recipe)
    return StageMemory(
        weights=trained * FP32_BYTES + (count(unet) - trained) * frozen_bytes,
        gradients=trained * FP32_BYTES,
        moments=sum(family.state_bytes(value.shape) for value in unet.parameters() if value.requires_grad),
        averages=averaged * FP32_BYTES * copies,
        activations=peak_activations(passes, options.checkpointed_levels(stage.levels)),
        text_encoder=text_encoder_bytes(recipe, options, num_text_parameters),
        autoencoder=autoencoder_bytes(recipe, options, num_vae_parameters),
    )


def fake_unet(recipe: Recipe, num_levels: int, as_images: bool = False) -> NestedUNetModel:
    """Build the inner levels of the recipe's model on the meta device, where weights have shapes but no contents.

    `as_images` builds the levels as they are before they have frames.
    """
    level_configs = inner_level_configs(recipe, num_levels, as_images)
    with torch.device("meta"):
        unet = NestedUNetModel(**recipe.model, **LevelConfig.columns_from(level_configs))
        if recipe.lora is not None:
            add_lora(unet, recipe.lora)
    return unet.train()


def freeze(unet: NestedUNetModel, recipe: Recipe, stage: StageRecipe) -> None:
    """Freeze what is not trained in a stage: its frozen levels and what levels share, or everything except LoRA.

    A level that is new around frozen levels gives them no features; weights without contents do not tell which is new.
    """
    if recipe.lora is not None:
        return
    freeze_levels(unet, stage.frozen_levels)
    if has_new_adapter(recipe, stage):
        cast("Level", unet.levels[stage.frozen_levels]).encoder.is_closed = True


def has_new_adapter(recipe: Recipe, stage: StageRecipe) -> bool:
    """Return whether the run grows the level around a stage's frozen levels and has never trained its adapter into
    them, which is then still zero.
    """
    frozen = stage.frozen_levels
    earlier = recipe.stages[: [one.name for one in recipe.stages].index(stage.name)]
    # Of a pretrained model, the levels are not known here.
    if frozen == 0 or recipe.pretrained is not None or not earlier or earlier[0].levels > frozen:
        return False
    return all(one.levels <= frozen or one.frozen_levels == frozen for one in earlier)


def count(module: torch.nn.Module, trained_only: bool = False) -> int:
    """Count the parameters, or only the trained ones."""
    parameters = (value for value in module.parameters() if value.requires_grad or not trained_only)
    return sum(value.numel() for value in parameters)


def num_averages(recipe: Recipe) -> int:
    """Return how many averages of each weight a run keeps."""
    post_hoc = 0 if recipe.post_hoc_ema is None else len(recipe.post_hoc_ema.sigma_rels)
    return int(recipe.use_ema) + post_hoc


def text_encoder_bytes(recipe: Recipe, options: RunOptions, num_parameters: int | None) -> int | None:
    """Estimate the memory of the text encoder: its weights, and if it is trained everything except activations."""
    if options.offload and not recipe.trains_text_encoder:
        return 0
    if num_parameters is None:
        return None
    if not recipe.trains_text_encoder:
        return num_parameters * (HALF_BYTES if _is_half(recipe, options) else FP32_BYTES)
    averages = 0 if options.offload_ema else FP32_BYTES * num_averages(recipe)
    moments = family_of(recipe.optimizer).state_bytes((num_parameters,))  # for Muon an upper limit
    return num_parameters * (2 * FP32_BYTES + averages) + moments


def autoencoder_bytes(recipe: Recipe, options: RunOptions, num_parameters: int | None) -> int | None:
    """Estimate the weights of the frozen autoencoder, which stays in float32 if it would overflow in float16."""
    if recipe.vae is None or num_parameters is None:
        return num_parameters
    if options.offload:
        return 0
    config = vae_config(recipe.vae, recipe.pretrained, local_files_only=True)
    dtype = vae_dtype(frozen_dtype(_precision(recipe, options)), config)
    return num_parameters * dtype.itemsize


def activations_of(unet: NestedUNetModel, recipe: Recipe, stage: StageRecipe, options: RunOptions) -> Activations:
    """Run a forward pass and record what each layer keeps for the backward pass; must be called inside
    `FakeTensorMode`.
    """
    outside = _Pieces(unet.parameters())
    layers: list[tuple[int, _Pieces, _Pieces]] = []

    def run_layer(level: int, layer: Callable[..., Any], *arguments: Any) -> Any:
        inputs, inside = _Pieces(unet.parameters()), _Pieces(unet.parameters())
        for tensor in arguments:
            if isinstance(tensor, torch.Tensor):
                inputs.add(tensor)
        with inside.counting():
            output = layer(*arguments)
        layers.append((level, inputs, inside))
        return output

    unet.enable_gradient_checkpointing()
    for index, level in enumerate(unet.levels):
        for module in checkpointed_modules(level):
            module._gradient_checkpointing_func = partial(run_layer, index)
    dtype = torch.float16 if _precision(recipe, options) == "fp16" else torch.bfloat16
    with outside.counting(), torch.autocast("cpu", dtype=dtype, enabled=_is_half(recipe, options)):
        unet(**fake_inputs(unet, recipe, stage))
    # All pieces have been kept alive until here, so that no address stands for two storages.
    recorded = tuple(LayerActivations(level, inputs.sizes, inside.sizes) for level, inputs, inside in layers)
    return Activations(outside.sizes, recorded, stage.levels)


class _Pieces:
    """Memory in which each storage counts once, however many tensors use it; `parameters` do not count."""

    def __init__(self, parameters: Iterable[torch.Tensor]) -> None:
        self._left_out = {storage_address(parameter) for parameter in parameters}
        self._storages: dict[int, torch.UntypedStorage] = {}  # kept alive: the id of a freed one could be reused

    @property
    def sizes(self) -> dict[int, int]:
        """Bytes of the storages, by address."""
        return {address: storage.nbytes() for address, storage in self._storages.items()}

    def add(self, tensor: torch.Tensor) -> torch.Tensor:
        """Count the memory of `tensor`, and return the tensor."""
        address = storage_address(tensor)
        if address not in self._left_out:
            self._storages[address] = tensor.untyped_storage()
        return tensor

    @contextlib.contextmanager
    def counting(self) -> Iterator[None]:
        """Count whatever autograd saves inside the block."""
        with torch.autograd.graph.saved_tensors_hooks(self.add, lambda tensor: tensor):
            yield


def largest_size(recipe: Recipe, stage: StageRecipe) -> Size:
    """Return height and width of the largest images of a stage, in pixels or latents of its outermost level."""
    side = recipe.sides[stage.levels - 1]
    # Without its autoencoder, the sizes of latents are unknown; their area is about that of the square.
    sizes = level_buckets(recipe, stage.levels) if recipe.vae is None else ()
    return max(sizes, key=math.prod, default=(side, side))


def fake_inputs(unet: NestedUNetModel, recipe: Recipe, stage: StageRecipe) -> dict[str, Any]:
    """Make inputs with the shapes of the stage and captions of the maximum length."""
    sides = recipe.sides
    scale = sides[stage.levels - 1]
    shape = largest_size(recipe, stage)
    channels = unet.config["in_channels"]
    batch = stage.samples_per_level
    is_clip = not trains_on_images(recipe, stage)
    frames = [(level.num_frames,) if is_clip else () for level in stage_level_configs(recipe, stage)]
    inputs: dict[str, Any] = {
        "sample": [
            torch.empty(batch[level], channels, *frames[level], *(part * sides[level] // scale for part in shape))
            for level in range(stage.levels)
        ],
        "timestep": torch.zeros(batch[0], dtype=torch.int64),
    }
    width = unet.config["encoder_hid_dim"] or unet.config["cross_attention_dim"]
    if width is not None:
        length = recipe.max_sequence_length
        inputs["encoder_hidden_states"] = torch.empty(batch[0], length, width)
        inputs["encoder_attention_mask"] = torch.ones(batch[0], length, dtype=torch.bool)
    if unet.config["num_class_embeds"] is not None:
        inputs["class_labels"] = torch.zeros(batch[0], dtype=torch.int64)
    return inputs


def _precision(recipe: Recipe, options: RunOptions) -> str:
    return options.mixed_precision or recipe.mixed_precision


def _is_half(recipe: Recipe, options: RunOptions) -> bool:
    return _precision(recipe, options) != "no"
