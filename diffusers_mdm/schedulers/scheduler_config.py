# SPDX-License-Identifier: Apache-2.0
"""Checks of the scheduler's config, and conversion of configs of diffusers' own schedulers."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import diffusers

from ..checked_values import check_flag, check_number, check_whole_number, describe
from ..library_internals import DEFAULTED_KEYS
from .noise_schedules import BETA_SCHEDULES
from .predictions import PREDICTION_TYPES, RESIDUALS
from .reverse_steps import ALGORITHMS, TIMESTEP_SPACINGS

CHOICES: dict[str, tuple[str | int, ...]] = {
    "beta_schedule": BETA_SCHEDULES,
    "level_scaling": ("shift", "rescale"),
    "timestep_spacing": TIMESTEP_SPACINGS,
    "algorithm": ALGORITHMS,
    "solver_order": (1, 2),
}

# Smallest and largest value of each integer.
WHOLE_NUMBERS = {"num_train_timesteps": (1, 1_000_000), "steps_offset": (0, 1_000_000)}
POSITIVE = ("base_sample_size", "clip_sample_range", "sample_max_value")
FLAGS = ("rescale_betas_zero_snr", "clip_sample", "thresholding")

# Keys that have the same meaning in diffusers' schedulers. `timestep_spacing` is not included: it belongs to the
# sampler, and the default of a class there is not a property of the model.
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
    """Check the values of a scheduler's config.

    Raises:
        ValueError: names the key, its value and what is allowed.
    """
    for key, allowed in CHOICES.items():
        if key == "beta_schedule" and config["trained_betas"] is not None:
            continue
        if not isinstance(config[key], (str, int)) or config[key] not in allowed:
            raise ValueError(f"`{key}` is {describe(config[key])}; expected one of {', '.join(map(str, allowed))}.")
    check_predictions(config["prediction_type"], config["sigma_data"])
    for key, (low, high) in WHOLE_NUMBERS.items():
        check_whole_number(config[key], f"`{key}`", low, high)
    for key in POSITIVE:
        check_number(config[key], f"`{key}`", 0.0, above=True)
    for key in FLAGS:
        check_flag(config[key], f"`{key}`")
    for key in ("beta_start", "beta_end"):
        check_number(config[key], f"`{key}`", 0.0)
    for key in ("log_snr_max", "log_snr_min"):
        check_number(config[key], f"`{key}`")
    check_number(config["dynamic_thresholding_ratio"], "`dynamic_thresholding_ratio`", 0.0, 1.0, above=True)
    check_number(config["shift_power"], "`shift_power`", 0.0)


def check_predictions(prediction_type: Any, sigma_data: Any) -> None:
    """Check `prediction_type` and `sigma_data`.

    Raises:
        ValueError: names the key, its value and what is allowed.
    """
    kinds = list(prediction_type) if isinstance(prediction_type, (list, tuple)) else [prediction_type]
    if not kinds or not all(isinstance(kind, str) and kind in PREDICTION_TYPES for kind in kinds):
        raise ValueError(
            f"`prediction_type` is {describe(prediction_type)}; expected one of {', '.join(PREDICTION_TYPES)}, or a "
            "list of them, one for each level, innermost first."
        )
    if kinds[0] in RESIDUALS and not isinstance(prediction_type, str):
        raise ValueError(
            f"`prediction_type` is {describe(prediction_type)}, but level 0 has no level inside it whose image a "
            f'"{kinds[0]}" could complete; let it predict "v_prediction" or "sample".'
        )
    for sigma in sigma_data if isinstance(sigma_data, (list, tuple)) else [sigma_data]:
        check_number(sigma, "`sigma_data`", 0.0, above=True)


def lasting_defaults(config: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return the keys to list as defaulted, without those that define the noise process.

    When the class of a scheduler is changed, diffusers replaces keys that had the default of the old class by the
    default of the new one. For keys that define the process, the new class would then silently sample a different
    process.
    """
    if DEFAULTED_KEYS not in config:
        return {}
    return {DEFAULTED_KEYS: sorted(set(config[DEFAULTED_KEYS]) - SHARED_KEYS)}


def with_origin_spelled_out(config: Mapping[str, Any], compatibles: Sequence[str]) -> dict[str, Any]:
    """Return a config, possibly of another scheduler class of diffusers, with the defaults of its class filled in.

    A saved config names its class, but old ones lack keys that were introduced later; the config of a scheduler in
    memory does not name a class, but has all keys.

    Args:
        config: a scheduler's config.
        compatibles: names of the classes of diffusers whose defaults can be filled in.

    Raises:
        ValueError: the other scheduler has a feature that is not supported here.
    """
    if not all(isinstance(key, str) for key in config):
        raise ValueError(f"The config of the scheduler has keys that are not text: {describe(list(config))}.")
    if str(config.get("variance_type")).startswith("learned"):
        raise ValueError(
            f"The config has variance_type={config['variance_type']!r}: its network predicts the variance as well, "
            "which MatryoshkaScheduler cannot use. Use a network that predicts only the sample, the noise or the "
            "velocity."
        )
    config = {**config, **lasting_defaults(config)}
    origin = config.get("_class_name")
    if isinstance(origin, str) and origin in compatibles:
        for key, parameter in inspect.signature(getattr(diffusers, origin)).parameters.items():
            if key in SHARED_KEYS or key == "algorithm_type":
                config.setdefault(key, parameter.default)
    if "algorithm_type" in config and "clip_sample" not in config:
        # diffusers' multistep solvers do not clip.
        config.setdefault("algorithm", config["algorithm_type"])
        config["clip_sample"] = False
    return config
