# SPDX-License-Identifier: Apache-2.0
"""Which pipeline a folder or Hub id holds, and loading it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from .. import public_names
from ..public_names import DiffusionPipeline

# Pipelines that take images are opened as the pipeline that generates from the same components without one.
WITHOUT_IMAGES = {
    "MDMImg2ImgPipeline": "MDMPipeline",
    "MDMInpaintPipeline": "MDMPipeline",
    "MDMUpscalePipeline": "MDMPipeline",
}


def read_index(model: str, revision: str | None = None) -> dict[str, Any]:
    """Return the contents of the `model_index.json` of a pipeline folder or Hub id.

    Raises:
        ValueError: there is none; or it is of a pipeline of another package.
        OSError: the Hub cannot be reached.
    """
    try:
        index = DiffusionPipeline.load_config(model, revision=revision)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{model} is neither a pipeline folder nor a Hub id that can be read: {error} A pipeline folder has a "
            "model_index.json; save_pretrained, the training commands and `convert` with --text_encoder write one."
        ) from error
    name = class_name(index)
    if pipeline_class(name) is None:
        raise ValueError(f"{model} holds a {name}; expected one of {', '.join(pipeline_names())}.")
    return dict(index)


def class_name(index: Mapping[str, Any]) -> str:
    """Return the class that an index names; for a list, which diffusers allows, the last part."""
    name = index.get("_class_name")
    return str(name[-1] if isinstance(name, (list, tuple)) and name else name)


def pipeline_names() -> list[str]:
    """Return the names of the pipelines of this package."""
    return sorted(name for name in vars(public_names) if name.startswith("MDM") and name.endswith("Pipeline"))


def pipeline_class(name: str) -> Any:
    """Return the pipeline that generates with the components of the pipeline `name`; None if that is not ours."""
    return getattr(public_names, WITHOUT_IMAGES.get(name, name), None) if name in pipeline_names() else None


def default_device() -> torch.device:
    """Return the accelerator that PyTorch finds on this machine, else the CPU."""
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return torch.device("cpu") if found is None else found


def open_pipeline(
    model: str,
    dtype: torch.dtype = torch.float32,
    variant: str | None = None,
    revision: str | None = None,
) -> Any:
    """Load a pipeline of this package on the CPU.

    Args:
        model: pipeline folder or Hub id. No code in it is executed.
        dtype: of all components.
        variant: variant of the weights.
        revision: of a Hub id.

    Raises:
        ValueError: it is not a pipeline of this package.
        OSError: files are missing.
    """
    cls = pipeline_class(class_name(read_index(model, revision)))
    return cls.from_pretrained(model, dtype=dtype, variant=variant, revision=revision)
