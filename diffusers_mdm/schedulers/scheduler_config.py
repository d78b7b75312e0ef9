# SPDX-License-Identifier: Apache-2.0
"""Configs of the scheduler: which values are allowed, and what the configs of diffusers' own schedulers mean here."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any

import diffusers

from .noise_schedules import BETA_SCHEDULES
from .reverse_steps import PREDICTION_TYPES
from .timestep_spacing import TIMESTEP_SPACINGS

CHOICES: dict[str, tuple[str | int, ...]] = {
    "beta_schedule": BETA_SCHEDULES,
    "prediction_type": PREDICTION_TYPES,
    "level_scaling": ("shift", "rescale"),
    "timestep_spacing": TIMESTEP_SPACINGS,
    "algorithm": ("ddim", "dpmsolver++"),
    "solver_order": (1, 2),
}

POSITIVE = ("num_train_timesteps", "base_sample_size", "clip_sample_range", "sample_max_value")

# Keys that have the same meaning in diffusers' schedulers. `timestep_spacing` is left out: it belongs to the sampler,
# and what a class has as its default there is not a property of the model.
SHARED_KEYS = frozenset(
    {
        "num_train_timesteps",
        "beta_start",
        "beta_end",
        "beta_schedule",
        "trained_betas",
        "rescale_betas_zero_snr",
        "prediction_type",
        "clip_sample",
        "clip_sample_range",
        "thresholding",
        "dynamic_thresholding_ratio",
        "sample_max_value",
        "steps_offset",
        "solver_order",
    }
)


def check_config(config: Mapping[str, Any]) -> None:
    """Refuse values that the scheduler does not know.

    Raises:
        ValueError: names the key, its value and what is allowed.
    """
    for key, allowed in CHOICES.items():
        if key == "beta_schedule" and config["trained_betas"] is not None:
            continue
        if config[key] not in allowed:
            raise ValueError(f"`{key}` is {config[key]!r}; expected one of {', '.join(map(str, allowed))}.")
    for key in POSITIVE:
        if not config[key] > 0:
            raise ValueError(f"`{key}` is {config[key]}; expected a number above 0.")
    ratio, power = config["dynamic_thresholding_ratio"], config["shift_power"]
    if not 0 < ratio <= 1:
        raise ValueError(f"`dynamic_thresholding_ratio` is {ratio}; expected a quantile above 0, at most 1.")
    if not 0 <= power < math.inf:
        raise ValueError(f"`shift_power` is {power}; expected a finite number, 0 or more.")


def lasting_defaults(config: Mapping[str, Any]) -> dict[str, list[str]]:
    """What the host's note of defaulted keys shall say, so that a change of class keeps what defines the process.

    The host replaces a key that was a default of one class by the default of the next one; for these keys the next
    class would then silently sample another process.
    """
    if "_use_default_values" not in config:
        return {}
    return {"_use_default_values": sorted(set(config["_use_default_values"]) - SHARED_KEYS)}


def with_origin_spelled_out(config: Mapping[str, Any], compatibles: Sequence[str]) -> dict[str, Any]:
    """A config, perhaps of another scheduler class of diffusers, with what it leaves to its class written out.

    A saved config names its class, and old ones lack keys that had not been invented; the config of a scheduler in
    memory names no class, but has every key.

    Args:
        config: a scheduler's config.
        compatibles: names of the classes of diffusers whose defaults may be filled in.

    Raises:
        ValueError: the other scheduler does something that has no counterpart here.
    """
    if str(config.get("variance_type")).startswith("learned"):
        raise ValueError(
            f"The config has variance_type={config['variance_type']!r}: its network predicts the variance as well, "
            "which MatryoshkaScheduler cannot use. Use a network that predicts the sample, the noise or the velocity "
            "alone."
        )
    config = {**config, **lasting_defaults(config)}
    origin = config.get("_class_name")
    if isinstance(origin, str) and origin in compatibles:
        for key, parameter in inspect.signature(getattr(diffusers, origin)).parameters.items():
            if key in SHARED_KEYS or key == "algorithm_type":
                config.setdefault(key, parameter.default)
    if "algorithm_type" in config and "clip_sample" not in config:
        # A multistep solver of the host: it does not clip.
        config.setdefault("algorithm", config["algorithm_type"])
        config["clip_sample"] = False
    return config
