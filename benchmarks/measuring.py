# SPDX-License-Identifier: Apache-2.0
"""Shared parts of the benchmarks: alternating timings, counts of operations, and models and inputs of known sizes."""

from __future__ import annotations

import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from diffusers_mdm import LevelConfig, NestedUNetModel
from diffusers_mdm.training.data.numbered import CaptionedImages
from diffusers_mdm.training.data.sources import open_validation_images, validation_captions
from diffusers_mdm.training.recipe.data import TableData
from diffusers_mdm.training.recipe.loading import load_recipe

ROOT = Path(__file__).parents[1]
EMOJI_RECIPE = ROOT / "training" / "recipes" / "emoji_64.yaml"
MODELS = ("emoji", "middle")
TEXT_LENGTH = 16


def describe_machine(device: str) -> str:
    """Describe versions and processor, for the line above a table of results."""
    where = (
        torch.cuda.get_device_name()
        if torch.device(device).type == "cuda"
        else f"{platform.machine()}, {torch.get_num_threads()} threads"
    )
    return f"torch {torch.__version__}, diffusers {diffusers.__version__}, {where}"


def write_numbers(path: Path, numbers: Mapping[str, Any]) -> None:
    """Write numbers as JSON, NaN as null."""
    path.write_text(json.dumps(numbers, indent=1).replace("NaN", "null") + "\n", encoding="utf-8")


def open_training_split(data_dir: Path, side: int) -> tuple[CaptionedImages, list[str]]:
    """Open the training split of a data set, to read images of `side` pixels by their numbers.

    Returns:
        The images, and the captions of all of them.

    Raises:
        ValueError: it has no images.
    """
    recipe = TableData(path=data_dir, validation_split="train", max_skipped_images=0)
    images = open_validation_images(recipe, side)
    if images is None:
        raise ValueError(f"{data_dir} has no training images.")
    return images, list(validation_captions(recipe))


def time_by_turns(
    calls: Mapping[str, Callable[[], Any]], rounds: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Time each call `rounds` times, in alternation, after one warm-up round; return the seconds of each.

    Other load on the machine then affects all calls alike, so that ratios of medians are meaningful.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(-1, rounds):
        for name, call in calls.items():
            start = clock()
            call()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if number >= 0:
                seconds[name].append(clock() - start)
    return seconds


def ratio_of_medians(over: Sequence[float], under: Sequence[float]) -> float:
    """Return the median of `over` divided by that of `under`."""
    return statistics.median(over) / statistics.median(under)


def count_flops(call: Callable[[], Any]) -> int:
    """Count the floating-point operations of matrix products and convolutions in `call`, including backward passes.

    Attention is run as separate matrix products, because the counter does not know the fused CPU kernel.
    """
    counter = FlopCounterMode(display=False)
    with sdpa_kernel(SDPBackend.MATH), counter:
        call()
    return counter.get_total_flops()


def build_model(name: str) -> NestedUNetModel:
    """Build a two-level model with random weights.

    "emoji" is the model of the emoji_64 recipe, with 16 and 64 pixels; "middle" has 32 and 128 pixels and the
    proportions of the published 256-pixel model at a third of its width.
    """
    if name == "emoji":
        recipe = load_recipe(EMOJI_RECIPE)
        return NestedUNetModel(**recipe.model, **LevelConfig.columns_from(recipe.level_configs))
    level_configs = (
        LevelConfig((96, 192, 288), (2, 2, 2), (0, 1, 3), has_mid_block=True, micro_conditioning_defaults=(32.0,)),
        LevelConfig((32, 64, 96), (2, 2, 1), (0, 0, 0), norm_num_groups=8, micro_conditioning_defaults=(128.0,)),
    )
    return NestedUNetModel(
        sample_size=32, encoder_hid_dim=512, cross_attention_dim=512, **LevelConfig.columns_from(level_configs)
    )


def memory_format_on(device: str, channels_last: bool = False) -> torch.memory_format:
    """The memory format of images and convolutions that drawing and training choose on a device.

    Args:
        device: "cpu" or "cuda".
        channels_last: choose channels_last on any device.
    """
    return torch.channels_last if channels_last or device == "cpu" else torch.contiguous_format


def random_inputs(
    model: NestedUNetModel, samples_per_level: Sequence[int], device: str = "cpu", seed: int = 0
) -> dict[str, Any]:
    """Make arguments for `model`: noise with a batch of `samples_per_level[i]` at level i, and text features of 16
    tokens.
    """
    draw = torch.Generator().manual_seed(seed)
    sides = model.sample_sizes[: len(samples_per_level)]
    width = model.config.encoder_hid_dim or model.config.cross_attention_dim
    num_rows, layout = samples_per_level[0], memory_format_on(device)
    return {
        "sample": [
            torch.randn(batch, model.config.in_channels, side, side, generator=draw).to(device, memory_format=layout)
            for batch, side in zip(samples_per_level, sides, strict=True)
        ],
        "timestep": torch.randint(0, 1000, (num_rows,), generator=draw).to(device),
        "encoder_hidden_states": torch.randn(num_rows, TEXT_LENGTH, width, generator=draw).to(device),
    }


def forward_and_backward(model: NestedUNetModel, inputs: Mapping[str, Any]) -> None:
    """Run the part of a training step that depends on the batch: predictions, mean square of each level, gradients.

    The optimizer is left out: its cost depends only on the number of parameters.
    """
    predictions = model(**inputs).sample
    torch.stack([level.square().mean() for level in predictions]).sum().backward()
    model.zero_grad(set_to_none=True)


def bytes_kept_by(model: torch.nn.Module, call: Callable[[], Any]) -> int:
    """Bytes that `call` keeps for its backward pass, each storage once, without the model's parameters and buffers."""
    known = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    kept: dict[int, torch.UntypedStorage] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage  # kept alive, so that its address is not reused
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        result = call()
    total = sum(storage.nbytes() for storage in kept.values())
    del result
    return total
