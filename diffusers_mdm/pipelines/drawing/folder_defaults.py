# SPDX-License-Identifier: Apache-2.0
"""Settings that a pipeline's folder says suit its model: what a call takes where it says nothing itself.

A small model trained for an hour wants other guidance than the published ones. Its folder says so in
`model_index.json`: `"drawing_defaults": {"num_inference_steps": 25, "guidance_scale": 3.0}`. Names that begin with
`upscale_` are for `MDMUpscalePipeline` alone, which otherwise takes the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffusers_mdm.pipelines.drawing.request import Request, check_argument, describe

# Arguments of `__call__` that a folder may set, with the values for folders that say nothing, as in diffusers.
PUBLISHED_DEFAULTS: Mapping[str, Any] = {"num_inference_steps": 50, "guidance_scale": 7.5, "num_resampling_steps": 1}
UPSCALE_DEFAULTS: Mapping[str, Any] = {**PUBLISHED_DEFAULTS, "eta": 0.0}
UPSCALE_PREFIX = "upscale_"
_KNOWN = (*PUBLISHED_DEFAULTS, *(UPSCALE_PREFIX + name for name in UPSCALE_DEFAULTS))


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
        if name not in _KNOWN:
            raise ValueError(f"`drawing_defaults` has {name!r}; it can have {', '.join(_KNOWN)}.")
        if value is None:
            raise ValueError(f"`drawing_defaults` has None for {name!r}; leave it out, or give a value.")
        checked[name] = check_argument(name.removeprefix(UPSCALE_PREFIX), value)
    return checked or None


def fill_in(
    request: Request, scheduler: Any, folder: Mapping[str, Any] | None, published: Mapping[str, Any], prefix: str
) -> None:
    """Give the arguments that a call left open their values.

    Args:
        request: the arguments of the call.
        scheduler: of the pipeline; one that injects no noise leaves no choice of `eta`.
        folder: the settings of the pipeline's folder, None for none.
        published: the values where the folder says nothing.
        prefix: of the settings that belong to the pipeline's task alone, "" for none.
    """
    own = folder or {}
    for name, value in published.items():
        if getattr(request, name) is None:
            chosen = own.get(prefix + name, own.get(name, value))
            is_refused = name == "eta" and scheduler.config.get("algorithm") == "dpmsolver++"
            setattr(request, name, value if is_refused else chosen)
