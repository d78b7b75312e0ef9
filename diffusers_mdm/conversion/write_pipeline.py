# SPDX-License-Identifier: Apache-2.0
"""Writing converted models, such that there is either a complete, verified folder or none."""

import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from ..models.nested_unet import NestedUNetModel
from ..schedulers.scheduling_matryoshka import MatryoshkaScheduler
from .state_dict_table import StateDict

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def check_output_is_new(path: str | Path) -> Path:
    """Return `path`, which must not exist yet.

    Raises:
        ValueError: there is something at `path`; nothing is ever overwritten.
    """
    path = Path(path)
    if path.exists() or path.is_symlink():
        raise ValueError(f"{path} exists already; choose another path or remove it first.")
    return path


def assemble_pipeline(
    pipeline_class: type, unet: NestedUNetModel, scheduler: MatryoshkaScheduler, text_encoder: str, dtype: torch.dtype
) -> Any:
    """Return a pipeline of `pipeline_class` around a model.

    Args:
        pipeline_class: class that takes text_encoder, tokenizer, unet and scheduler.
        unet: the model.
        scheduler: its scheduler.
        text_encoder: folder or Hub id of a transformers text encoder with its tokenizer.
        dtype: dtype in which the encoder is loaded.

    Raises:
        ValueError: the encoder's output has a different width from the model's text input.
        OSError: there is no such encoder.
    """
    from transformers import AutoConfig, AutoModel, AutoTokenizer, MT5EncoderModel, T5EncoderModel, UMT5EncoderModel

    config = AutoConfig.from_pretrained(text_encoder)
    # Only the encoder of encoder-decoder models is needed.
    encoders = {"t5": T5EncoderModel, "mt5": MT5EncoderModel, "umt5": UMT5EncoderModel}
    expected = unet.config["encoder_hid_dim"] or unet.config["cross_attention_dim"]
    width = getattr(config, "hidden_size", None)
    if width != expected:
        raise ValueError(
            f"The text encoder {text_encoder} outputs vectors of width {width}; this model was trained with width "
            f"{expected} (FLAN-T5 XL has 2048). Pass the encoder that belongs to the checkpoint."
        )
    encoder = encoders.get(config.model_type, AutoModel).from_pretrained(text_encoder, dtype=dtype)
    tokenizer = AutoTokenizer.from_pretrained(text_encoder)
    return pipeline_class(text_encoder=encoder, tokenizer=tokenizer, unet=unet, scheduler=scheduler)


def write_folder(output_dir: str | Path, fill: Callable[[Path], None]) -> None:
    """Let `fill` write into a temporary folder beside `output_dir`, and rename that when it returns.

    Args:
        output_dir: folder to create; must not exist yet.
        fill: writes (and verifies) everything in the empty folder it is given; if it raises, nothing is left behind.

    Raises:
        ValueError: the folder exists already.
    """
    output_dir = check_output_is_new(output_dir)
    # The nearest existing folder is on the same file system, so that the rename is atomic.
    existing = next(parent for parent in output_dir.absolute().parents if parent.is_dir())
    with tempfile.TemporaryDirectory(dir=existing, prefix=f".{output_dir.name}.") as scratch:
        folder = Path(scratch) / output_dir.name
        folder.mkdir()
        fill(folder)
        output_dir.parent.mkdir(parents=True, exist_ok=True)
        check_output_is_new(output_dir)
        os.rename(folder, output_dir)


def write_model(
    output_dir: str | Path,
    unet: NestedUNetModel,
    scheduler: MatryoshkaScheduler,
    extra_tensors: Mapping[str, StateDict] | None = None,
    make_pipeline: Callable[[NestedUNetModel, MatryoshkaScheduler], Any] | None = None,
    variant: str | None = None,
    texts: Mapping[str, str] | None = None,
) -> None:
    """Save, load again and compare a converted model.

    Args:
        output_dir: folder to create, with `unet/` and `scheduler/`, or all folders of a pipeline.
        unet: the model, in the dtype to be saved.
        scheduler: its scheduler.
        extra_tensors: further safetensors files beside the weights, by file name.
        make_pipeline: builds a whole pipeline from the two; None saves only them.
        variant: variant in the names of the weight files, as in diffusers.
        texts: further text files, such as a model card, by file name.

    Raises:
        ValueError: the folder exists already, or the loaded weights differ from the saved ones.
    """

    def fill(folder: Path) -> None:
        if make_pipeline is None:
            unet.save_pretrained(folder / "unet", variant=variant)
            scheduler.save_pretrained(folder / "scheduler")
        else:
            make_pipeline(unet, scheduler).save_pretrained(folder, variant=variant)
        for name, tensors in (extra_tensors or {}).items():
            if tensors:
                save_file(
                    {key: tensor.contiguous().clone() for key, tensor in tensors.items()}, folder / "unet" / name
                )
                check_same_tensors(tensors, load_file(folder / "unet" / name))
        for name, text in (texts or {}).items():
            (folder / name).write_text(text, encoding="utf-8")
        loaded = NestedUNetModel.from_pretrained(folder / "unet", variant=variant, dtype=unet.dtype)
        check_same_tensors(unet.state_dict(), loaded.state_dict())
        MatryoshkaScheduler.from_pretrained(folder / "scheduler")

    write_folder(output_dir, fill)


def write_checkpoint(output_path: str | Path, contents: Mapping[str, Any]) -> None:
    """Write a `.pth` of tensors and plain values under a temporary name, load it again, and rename it.

    Raises:
        ValueError: the file exists already, or the loaded contents differ from the saved ones.
    """
    output_path = check_output_is_new(output_path)
    existing = next(parent for parent in output_path.absolute().parents if parent.is_dir())
    with tempfile.TemporaryDirectory(dir=existing, prefix=f".{output_path.name}.") as scratch:
        file = Path(scratch) / output_path.name
        torch.save(dict(contents), file)
        loaded = torch.load(file, weights_only=True)
        check_same_tensors(contents["state_dict"], loaded["state_dict"])
        output_path.parent.mkdir(parents=True, exist_ok=True)
        os.rename(file, output_path)


def check_same_tensors(expected: Mapping[str, torch.Tensor], found: Mapping[str, torch.Tensor]) -> None:
    """Raise a ValueError unless both have the same names, shapes, dtypes and bits."""
    if set(expected) != set(found):
        name = sorted(set(expected) ^ set(found))[0]
        raise ValueError(f"After saving and loading, {name} is on one side only. Is the disk full?")
    for name, tensor in expected.items():
        if not same_bits(tensor, found[name]):
            raise ValueError(f"After saving and loading, {name} has changed. Is the disk full?")


def same_bits(left: torch.Tensor, right: torch.Tensor) -> bool:
    """Return whether two tensors have the same shape, dtype and bytes (so that NaN equals itself and 0 differs from
    -0).
    """
    if left.shape != right.shape or left.dtype != right.dtype:
        return False
    as_bytes = [tensor.detach().cpu().contiguous().flatten().view(torch.uint8) for tensor in (left, right)]
    return torch.equal(*as_bytes)
