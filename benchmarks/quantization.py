# SPDX-License-Identifier: Apache-2.0
"""Measure the size of quantised pipelines, and how far their images are from those of the float32 weights.

Every form of the weights generates images for the same captions of the training data from the same noise. Measured are
the bytes of the weights of U-Net and text encoder, the error of the images of the outermost level (root mean square
difference from those of float32, of a range of 1, mean over the images and its standard error), and processor time
relative to float32. Quantisation is torchao's, by diffusers' `PipelineQuantizationConfig`: it stores the weights of
linear layers in fewer bits; those of convolutions keep their precision.

python benchmarks/quantization.py --output runs/quantization.json
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import PipelineQuantizationConfig
from measuring import ROOT, describe_machine, write_numbers

from diffusers_mdm import MDMPipeline

CAPTIONS = (
    "strawberry, 3d render",
    "red heart, flat icon",
    "fox, twemoji style",
    "tomato, noto style",
    "cherries, 3d render",
    "red apple, flat icon",
    "evergreen tree, twemoji style",
    "cat face, noto style",
    "sunflower, 3d render",
    "rainbow, flat icon",
    "frog, 3d render",
    "mushroom, 3d render",
    "panda, flat icon",
    "rocket, 3d render",
    "octopus, 3d render",
    "pizza, 3d render",
)


def in_dtype(dtype: torch.dtype) -> Callable[[Path], MDMPipeline]:
    """Return what loads a pipeline in a precision."""
    return lambda folder: MDMPipeline.from_pretrained(folder, dtype=dtype)


def with_float8_storage(folder: Path) -> MDMPipeline:
    """Load a pipeline whose U-Net stores its weights in float8 and computes in float32 (layerwise casting)."""
    pipeline = MDMPipeline.from_pretrained(folder, dtype=torch.float32)
    pipeline.unet.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    return pipeline


def quantized(name: str) -> Callable[[Path], MDMPipeline]:
    """Return what loads a pipeline with linear layers quantised by torchao's config of this name."""

    def load(folder: Path) -> MDMPipeline:
        import torchao.quantization

        config = getattr(torchao.quantization, name)()
        mapping = {"unet": diffusers.TorchAoConfig(config), "text_encoder": transformers.TorchAoConfig(config)}
        quantization = PipelineQuantizationConfig(quant_mapping=mapping)
        return MDMPipeline.from_pretrained(folder, dtype=torch.float32, quantization_config=quantization)

    return load


FORMS: dict[str, Callable[[Path], MDMPipeline]] = {
    "float32": in_dtype(torch.float32),
    "bfloat16": in_dtype(torch.bfloat16),
    "float8 storage (layerwise casting)": with_float8_storage,
    "int8 weights (torchao)": quantized("Int8WeightOnlyConfig"),
    "int8 weights and activations (torchao)": quantized("Int8DynamicActivationInt8WeightConfig"),
    "float8 weights (torchao)": quantized("Float8WeightOnlyConfig"),
}


def stored_bytes(model: torch.nn.Module) -> int:
    """Return the bytes of a model's parameters and buffers; a quantised tensor counts by its parts."""
    total = 0
    for tensor in (*model.parameters(), *model.buffers()):
        flatten = getattr(tensor.data, "__tensor_flatten__", None)
        parts = [tensor] if flatten is None else [getattr(tensor.data, name) for name in flatten()[0]]
        total += sum(part.numel() * part.element_size() for part in parts)
    return total


def draw(pipeline: MDMPipeline) -> torch.Tensor:
    """Generate an image for each caption, `(N, 3, S, S)` in [0, 1], each with a seed of its own."""
    generators = [torch.Generator().manual_seed(index) for index in range(len(CAPTIONS))]
    return pipeline(list(CAPTIONS), generator=generators, output_type="pt").images.float()


def measure(load: Callable[[Path], MDMPipeline], folder: Path, truth: torch.Tensor | None) -> dict[str, Any]:
    """Load a form of a pipeline, draw with it, and compare its images with those of float32.

    Args:
        load: one of `FORMS`.
        folder: of the pipeline.
        truth: images of float32, None for float32 itself.
    """
    pipeline = load(folder)
    pipeline.set_progress_bar_config(disable=True)
    start = time.process_time()
    images = draw(pipeline)
    seconds = time.process_time() - start
    errors = (images - (images if truth is None else truth)).square().flatten(1).mean(1).sqrt().tolist()
    return {
        "unet_bytes": stored_bytes(pipeline.unet),
        "text_encoder_bytes": stored_bytes(pipeline.text_encoder),
        "error": statistics.mean(errors),
        "standard_error": statistics.stdev(errors) / len(errors) ** 0.5,
        "seconds": seconds,
        "images": images,
    }


def main() -> None:
    """Measure every form, print a table, and write the numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_dir", type=Path, default=ROOT / "model_cards" / "mdm-emoji-64")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    args = parser.parse_args()
    found = {}
    for name, load in FORMS.items():
        found[name] = measure(load, args.model_dir, found["float32"]["images"] if found else None)
        entry = found[name]
        print(
            f"| {name} | {entry['unet_bytes'] / 1e6:.1f} | {entry['text_encoder_bytes'] / 1e6:.1f} | "
            f"{entry['error']:.4f} ± {entry['standard_error']:.4f} | "
            f"{entry['seconds'] / found['float32']['seconds']:.2f} |",
            flush=True,
        )
    if args.output is not None:
        for entry in found.values():
            del entry["images"]
        result = {"machine": describe_machine("cpu"), "num_captions": len(CAPTIONS), "forms": found}
        args.output.parent.mkdir(parents=True, exist_ok=True)
        write_numbers(args.output, result)


if __name__ == "__main__":
    main()
