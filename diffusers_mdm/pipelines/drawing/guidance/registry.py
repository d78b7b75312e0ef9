# SPDX-License-Identifier: Apache-2.0
"""Guidance methods by name, and reading the `guider` argument of a call."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffusers_mdm.checked_values import describe
from diffusers_mdm.pipelines.drawing.guidance.interval import IntervalGuidance
from diffusers_mdm.pipelines.drawing.guidance.method import GuidanceMethod, PlainGuidance
from diffusers_mdm.pipelines.drawing.guidance.projected import ProjectedGuidance
from diffusers_mdm.pipelines.drawing.guidance.zero_star import ZeroStarGuidance
from diffusers_mdm.pipelines.drawing.request import Request

METHODS: dict[str, type[GuidanceMethod]] = {
    "plain": PlainGuidance,
    "interval": IntervalGuidance,
    "projected": ProjectedGuidance,
    "zero_star": ZeroStarGuidance,
}


def method_of(guider: Any) -> GuidanceMethod:
    """Return the method for a `guider` argument.

    Args:
        guider: None for plain guidance; a name; a dict of a name and its settings, such as
            `{"name": "interval", "low": -4.0}`, whose `method` may be such a dict again; a method; or a
            guider of diffusers.

    Raises:
        ValueError: the argument is something else, or has settings that the method does not have.
    """
    if guider is None:
        return PlainGuidance()
    if isinstance(guider, GuidanceMethod):
        return guider
    if hasattr(guider, "prepare_inputs"):
        from diffusers_mdm.pipelines.drawing.guidance.diffusers_guiders import DiffusersGuider

        return DiffusersGuider(guider)
    settings = dict(guider) if isinstance(guider, Mapping) else {"name": guider}
    name = settings.pop("name", None)
    if not isinstance(name, str) or name not in METHODS:
        raise ValueError(
            f"`guider` is {describe(guider)}; expected one of {', '.join(METHODS)}, a dict with one of them as `name` "
            "and its settings, a `GuidanceMethod`, or a guider of diffusers."
        )
    if "method" in settings:
        settings["method"] = method_of(settings["method"])
    try:
        return METHODS[name](**settings)
    except TypeError as error:
        raise ValueError(f"`guider` {name!r} does not take these settings: {error}.") from error


def read_guider(request: Request) -> None:
    """Read the `guider` of a call.

    Args:
        request: receives the method.

    Raises:
        ValueError: see `method_of`; or `guidance_scale` was passed with a guider of diffusers, which has its own.
    """
    request.guidance = method_of(request.guider)
    if request.guidance.has_own_scale and (request.guidance_scale is not None or request.guidance_rescale):
        raise ValueError(
            f"The guider {type(request.guider).__name__} has its own `guidance_scale` and `guidance_rescale`; set "
            f"them there, and omit those of the call."
        )
