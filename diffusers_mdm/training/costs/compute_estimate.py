# SPDX-License-Identifier: Apache-2.0
"""Estimate of the GPU hours of a recipe, from the operations of a model without weights.

Matrix products and convolutions of a forward and a backward pass are counted on tensors that have shapes and no
contents. Where everything learns, the backward pass has twice as many as the forward pass, for the gradients of inputs
and of weights. What gradient checkpointing computes again is not counted.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ...checked_values import check_number
from ...pyramid import as_pyramid
from ..recipe.clip_stages import joint_stage
from ..recipe.recipe import Recipe
from ..recipe.stage import StageRecipe
from .memory_estimate import fake_inputs, fake_unet, freeze

SECONDS_PER_HOUR = 3600


@dataclass(frozen=True)
class Gpu:
    """The speed of a GPU.

    Attributes:
        tflops: its rate of matrix products in the precision of training, in 10^12 operations per second; 800 is what
            an H100 reached in bf16 (`benchmarks/README.md`, as the next one).
        utilisation: fraction of that rate which training reaches, above 0 to 1; training steps of the published
            models, with batches of 16 images, reached 0.105.
    """

    tflops: float = 800.0
    utilisation: float = 0.1

    def __post_init__(self) -> None:
        check_number(self.tflops, "`tflops`", 0.0, above=True)
        check_number(self.utilisation, "`utilisation`", 0.0, 1.0, above=True)

    def hours(self, flops: float) -> float:
        """Return how many hours the GPU takes for a number of operations."""
        return flops / (self.tflops * 1e12 * self.utilisation) / SECONDS_PER_HOUR


@dataclass(frozen=True)
class StageCompute:
    """The operations of a stage.

    Attributes:
        name: of the stage.
        images: images over all steps and processes; None if only a plateau ends the stage.
        flops_per_image: operations of the forward and backward pass of the U-Net per image; for clips, per clip,
            with its share of `joint_images`.
    """

    name: str
    images: int | None
    flops_per_image: float

    @property
    def flops(self) -> float | None:
        """All operations of the stage."""
        return None if self.images is None else self.images * self.flops_per_image


def estimate_compute(recipe: Recipe, num_processes: int = 1) -> list[StageCompute]:
    """Count the operations of every stage: matrix products and convolutions of the U-Net.

    Text encoder, autoencoder, optimizer and averages are left out: the first two depend on what is computed before
    (`--embeddings_dir`), and the others hardly count beside batches that fill a GPU.

    Args:
        recipe: the recipe.
        num_processes: number of processes that share a step.
    """
    return [estimate_stage_compute(recipe, stage, num_processes) for stage in recipe.stages]


def estimate_stage_compute(recipe: Recipe, stage: StageRecipe, num_processes: int) -> StageCompute:
    """Count the operations of one stage; see `estimate_compute`."""
    steps = stage.max_steps(num_processes)
    images = None if steps is None else steps * stage.images_per_step * num_processes
    joint = joint_stage(recipe, stage)
    flops = pass_flops(recipe, stage) + (0.0 if joint is None else pass_flops(recipe, joint))
    return StageCompute(stage.name, images, flops / stage.batch_size)


def pass_flops(recipe: Recipe, stage: StageRecipe) -> float:
    """Count the operations of a forward and a backward pass with the batch of a stage, on tensors without memory."""
    unet, counter = fake_unet(recipe, stage.levels, stage.as_images), FlopCounterMode(display=False)
    freeze(unet, recipe, stage)
    with torch.device("meta"):
        inputs = fake_inputs(unet, recipe, stage)
    with sdpa_kernel(SDPBackend.MATH), counter:
        levels = as_pyramid(unet(**inputs).sample)[0]
        torch.stack([level.sum() for level in levels]).sum().backward()
    return float(counter.get_total_flops())


def describe_compute(recipe: Recipe, gpu: Gpu, num_processes: int = 1) -> str:
    """Return the estimate in words, one line for each stage and one for all.

    Args:
        recipe: the recipe.
        gpu: rate and utilisation.
        num_processes: number of GPUs.
    """
    return "\n".join(_lines(recipe, gpu, num_processes))


def _lines(recipe: Recipe, gpu: Gpu, num_processes: int) -> Iterator[str]:
    stages = estimate_compute(recipe, num_processes)
    yield f"{recipe.name}, {num_processes} GPU(s) of {gpu.tflops:g} TFLOP/s, of which {gpu.utilisation:.3g} is used:"
    for stage in stages:
        yield f"  {stage.name}: {describe_stage_compute(stage, gpu, num_processes)}"
    known = sum(stage.flops or 0.0 for stage in stages)
    yield f"  together: {known:.2e} operations, {_describe_time(gpu.hours(known), num_processes)}"


def describe_stage_compute(stage: StageCompute, gpu: Gpu, num_processes: int) -> str:
    """Describe operations and time of a stage.

    Args:
        stage: its operations.
        gpu: the speed of each GPU.
        num_processes: number of GPUs.
    """
    cost = f"{_rounded(stage.flops_per_image / 1e9)} GFLOP per image or clip"
    if stage.images is None or stage.flops is None:
        return f"{cost}; the validation loss ends the stage, so its length is not known"
    time = _describe_time(gpu.hours(stage.flops), num_processes)
    return f"{stage.images:,} images or clips, {cost}, {stage.flops:.2e} operations, {time}"


def _describe_time(hours: float, num_processes: int) -> str:
    return f"{_rounded(hours)} GPU hours, {_rounded(hours / num_processes / 24)} days"


def _rounded(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"
