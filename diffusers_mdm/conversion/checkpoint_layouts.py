# SPDX-License-Identifier: Apache-2.0
"""Where in a checkpoint the weights of the model are, and what wrappers of training put around their names.

Trainers save `{"state_dict": …}`, `{"model": …, "ema": …}`, one dict of several modules (`model.conv_in.weight`), and
names that begin with what wraps the model (`module.`, `_orig_mod.`). Weights of a model are known by their first
convolution, which every format that is read here calls `conv_in`.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from ..config_reading import describe
from .inert_objects import PickledObject, mapping_of
from .state_dict_table import INNER, MAX_LISTED, MAX_NAME_LENGTH, StateDict, check_names

# What torch.compile, FSDP and activation checkpointing put into names, wherever a module is wrapped.
_WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
# DistributedDataParallel and DataParallel wrap the whole model only.
_PARALLEL = re.compile(r"^(?:module\.)+")
_FIRST_CONVOLUTION = re.compile(rf"(.*?)(?:(?:{re.escape(INNER)})*|levels\.\d+\.encoder\.)conv_in\.weight")


def find_state_dict(checkpoint: Any, key: str | None = None) -> StateDict:
    """Return the weights of the one model in a checkpoint, without the prefixes that wrappers put before their names.

    Args:
        checkpoint: a state dict, or a mapping that holds one or several, up to two levels deep.
        key: which of several to take, as the error for several names them, e.g. "ema".

    Raises:
        ValueError: there is none, there are several and `key` names none of them, or it holds something else than
            named tensors.
    """
    candidates = dict(_candidates(checkpoint))
    if key is not None:
        if key not in candidates:
            raise ValueError(f"The checkpoint has no weights of such a model at {key!r}; {_what_it_has(candidates)}.")
    elif len(candidates) > 1:
        raise ValueError(
            f"The checkpoint has the weights of {len(candidates)} models, at {_listed(candidates)}; say which to take "
            "(--state_dict_key, or `state_dict_key` in Python). Averages of the weights (ema) usually draw better."
        )
    elif not candidates:
        raise ValueError(_nothing_found(checkpoint))
    mapping, prefix = candidates[key] if key is not None else next(iter(candidates.values()))
    weights = _plain_names(mapping)
    if prefix:  # other modules may stand beside it
        weights = {name.removeprefix(prefix): value for name, value in _named(weights) if name.startswith(prefix)}
    check_names(weights)
    return weights


def _candidates(checkpoint: Any) -> Iterator[tuple[str, tuple[dict[Any, Any], str]]]:
    """Yield (dotted key, (mapping, prefix of its names)) for each model in a checkpoint, each mapping once."""
    seen: set[int] = set()
    places: list[tuple[str, Any, int]] = [("", checkpoint, 0)]
    for key, value, depth in places:
        mapping = mapping_of(value)
        if mapping is None or id(value) in seen:
            continue
        seen.add(id(value))
        prefixes = _prefixes(mapping)
        for prefix in [""] if "" in prefixes else prefixes:
            yield ".".join(filter(None, (key, prefix.removesuffix(".")))), (mapping, prefix)
        if not prefixes and depth < 2:
            places += [(f"{key}.{name}" if key else name, entry, depth + 1) for name, entry in _named(mapping)]


def _named(mapping: Mapping[Any, Any]) -> Iterator[tuple[str, Any]]:
    return ((name, value) for name, value in mapping.items() if isinstance(name, str))


def _prefixes(mapping: Mapping[Any, Any]) -> list[str]:
    """What stands before the first convolutions of a mapping, each once."""
    found: dict[str, None] = {}
    for name, value in _named(mapping):
        if name.endswith("conv_in.weight") and len(name) <= MAX_NAME_LENGTH and isinstance(value, torch.Tensor):
            match = _FIRST_CONVOLUTION.fullmatch(_plain_name(name))
            if match and (not match[1] or match[1].endswith(".")):
                found.setdefault(match[1])
    return list(found)


def _plain_name(name: str) -> str:
    return _PARALLEL.sub("", _WRAPPERS.sub("", name))


def _plain_names(mapping: Mapping[Any, Any]) -> dict[Any, Any]:
    """The mapping without wrappers in its names."""
    plain = {_plain_name(name) if isinstance(name, str) else name: value for name, value in mapping.items()}
    if len(plain) < len(mapping):
        raise ValueError(
            "The checkpoint has several tensors whose names differ only in what wraps the model (module., "
            "_orig_mod.); save the state dict of one model."
        )
    return plain


def _listed(names: Mapping[str, Any]) -> str:
    shown = ", ".join(describe(name) for name in list(names)[:MAX_LISTED])
    return shown + (", …" if len(names) > MAX_LISTED else "")


def _what_it_has(candidates: Mapping[str, Any]) -> str:
    return f"it has some at {_listed(candidates)}" if candidates else "it has none elsewhere either"


def _nothing_found(checkpoint: Any) -> str:
    mapping = mapping_of(checkpoint)
    if not mapping:
        return "The checkpoint has no named tensors; expected a state dict."
    entries = {
        f"{describe(key)} ({value.path if isinstance(value, PickledObject) else type(value).__name__})": None
        for key, value in list(mapping.items())[: MAX_LISTED + 1]
    }
    listed = ", ".join(list(entries)[:MAX_LISTED]) + (", …" if len(mapping) > MAX_LISTED else "")
    return (
        "The checkpoint has no named tensors of such a model: nothing is called conv_in.weight at its top, or in a "
        f"mapping inside it. It holds {listed}."
    )
