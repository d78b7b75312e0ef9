# SPDX-License-Identifier: Apache-2.0
"""Settings that a pipeline's folder says suit its model: what a call takes where it says nothing itself.

A small model trained for an hour wants other guidance than the published ones. Its folder says so in
`model_index.json`: `"drawing_defaults": {"num_inference_steps": 25, "guidance_scale": 3.0}`. Names that begin with
`upscale_` are those of `MDMUpscalePipeline`, which otherwise takes the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffusers_mdm.pipelines.drawing.request import Request, check_argument, describe

# Arguments of `__call__` that a folder may set, with the values for folders that say nothing, as in diffusers.
PUBLISHED_DEFAULTS: Mapping[str, Any] = {"num_inference_steps": 50, "guidance_scale": 7.5}
UPSCALE_PREFIX = "upscale_"


def check_defaults(defaults: Any) -> dict[str, Any] | None:
    """Give a folder's settings in the types that calls work with; None for none.

    Args:
        defaults: as they stand in `model_index.json`.

    Raises:
        ValueError: they are no mapping, name something else, or have values of the wrong kind.
    """
    if defaults is None:
        return None
    if not isinstance(defaults, Mapping):
        raise ValueError(
            f"`drawing_defaults` has to be a dict such as {dict(PUBLISHED_DEFAULTS)}, but is {describe(defaults)}."
        )
    checked = {}
    for name, value in defaults.items():
        argument = str(name).removeprefix(UPSCALE_PREFIX)
        if argument not in PUBLISHED_DEFAULTS:
            known = [prefix + known for known in PUBLISHED_DEFAULTS for prefix in ("", UPSCALE_PREFIX)]
            raise ValueError(f"`drawing_defaults` has {name!r}; it can have {', '.join(known)}.")
        if value is None:
            raise ValueError(f"`drawing_defaults` has None for {name!r}; leave it out, or give a value.")
        checked[name] = check_argument(argument, value)
    return checked or None


def fill_in(request: Request, folder: Mapping[str, Any] | None, published: Mapping[str, Any], prefix: str) -> None:
    """Give the arguments that a call left open their values.

    Args:
        request: the arguments of the call.
        folder: the settings of the pipeline's folder, None for none.
        published: the values where the folder says nothing.
        prefix: of the settings that belong to the pipeline's task alone, "" for none.
    """
    own = folder or {}
    for name, value in published.items():
        if getattr(request, name) is None:
            setattr(request, name, own.get(prefix + name, own.get(name, value)))
