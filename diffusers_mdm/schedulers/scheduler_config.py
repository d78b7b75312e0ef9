# SPDX-License-Identifier: Apache-2.0
"""Configs of the scheduler: which values are allowed, and what the configs of diffusers' own schedulers mean here."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import diffusers

from ..checked_values import check_flag, check_number, check_whole_number, describe
from ..library_internals import DEFAULTED_KEYS
from .noise_schedules import BETA_SCHEDULES
from .predictions import PREDICTION_TYPES
from .timestep_spacing import TIMESTEP_SPACINGS

CHOICES: dict[str, tuple[str | int, ...]] = {
    "beta_schedule": BETA_SCHEDULES,
    "level_scaling": ("shift", "rescale"),
    "timestep_spacing": TIMESTEP_SPACINGS,
    "algorithm": ("ddim", "dpmsolver++"),
    "solver_order": (1, 2),
}

# Smallest and largest value of each whole number.
WHOLE_NUMBERS = {"num_train_timesteps": (1, 1_000_000), "steps_offset": (0, 1_000_000)}
POSITIVE = ("base_sample_size", "clip_sample_range", "sample_max_value")
FLAGS = ("rescale_betas_zero_snr", "clip_sample", "thresholding")

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
    """Refuse predictions that no level can make.

    Raises:
        ValueError: names the key, its value and what is allowed.
    """
    kinds = list(prediction_type) if isinstance(prediction_type, (list, tuple)) else [prediction_type]
    if not kinds or not all(isinstance(kind, str) and kind in PREDICTION_TYPES for kind in kinds):
        raise ValueError(
            f"`prediction_type` is {describe(prediction_type)}; expected one of {', '.join(PREDICTION_TYPES)}, or a "
            "list of them, one for each level, innermost first."
        )
    if kinds[0] == "residual" and not isinstance(prediction_type, str):
        raise ValueError(
            f"`prediction_type` is {describe(prediction_type)}, but level 0 has no level inside it whose picture a "
            '"residual" could complete; let it predict "v_prediction" or "sample".'
        )
    for sigma in sigma_data if isinstance(sigma_data, (list, tuple)) else [sigma_data]:
        check_number(sigma, "`sigma_data`", 0.0, above=True)


def lasting_defaults(config: Mapping[str, Any]) -> dict[str, list[str]]:
    """What diffusers' note of defaulted keys has to say, so that a change of class keeps what defines the process.

    diffusers replaces a key that was a default of one class by the default of the next one; for these keys the next
    class would then silently sample another process.
    """
    if DEFAULTED_KEYS not in config:
        return {}
    return {DEFAULTED_KEYS: sorted(set(config[DEFAULTED_KEYS]) - SHARED_KEYS)}


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
    if not all(isinstance(key, str) for key in config):
        raise ValueError(f"The config of the scheduler has keys that are no text: {describe(list(config))}.")
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
        # A multistep solver of diffusers, which does not clip.
        config.setdefault("algorithm", config["algorithm_type"])
        config["clip_sample"] = False
    return config
