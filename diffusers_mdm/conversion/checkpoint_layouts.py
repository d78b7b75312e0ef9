# SPDX-License-Identifier: Apache-2.0
"""Finding a model's weights in a checkpoint, and removing the prefixes that wrappers add to their names.

Trainers save `{"state_dict": …}`, `{"model": …, "ema": …}`, one dict of several modules (`model.conv_in.weight`), and
names with the prefixes of wrappers (`module.`, `_orig_mod.`). A model's weights are recognised by their first
convolution, which all supported formats call `conv_in`.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from ..checked_values import describe
from .inert_objects import PickledObject, mapping_of
from .state_dict_table import INNER, MAX_LISTED, MAX_NAME_LENGTH, StateDict, check_names

# Name parts that torch.compile, FSDP and activation checkpointing insert wherever they wrap a module.
_WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
# DistributedDataParallel and DataParallel only wrap the whole model.
_PARALLEL = re.compile(r"^(?:module\.)+")
_FIRST_CONVOLUTION = re.compile(rf"(.*?)(?:(?:{re.escape(INNER)})*|levels\.\d+\.encoder\.)conv_in\.weight")


def find_state_dict(checkpoint: Any, key: str | None = None) -> StateDict:
    """Return the weights of the model in a checkpoint, without the prefixes of wrappers.

    Args:
        checkpoint: a state dict, or a mapping that contains one or several, nested up to two deep.
        key: which of several to take, named as in the error message for several, e.g. "ema".

    Raises:
        ValueError: there are no such weights, there are several and `key` names none of them, or an entry is not a
            named tensor.
    """
    candidates = dict(_candidates(checkpoint))
    if key is not None:
        if key not in candidates:
            raise ValueError(
                f"The checkpoint has no weights of a supported model at {key!r}; {_what_it_has(candidates)}."
            )
    elif len(candidates) > 1:
        raise ValueError(
            f"The checkpoint has the weights of {len(candidates)} models, at {_listed(candidates)}; choose one "
            f"(--state_dict_key, or `state_dict_key` in Python). Averaged weights (ema) usually give better images."
        )
    elif not candidates:
        raise ValueError(_nothing_found(checkpoint))
    mapping, prefix = candidates[key] if key is not None else next(iter(candidates.values()))
    weights = _plain_names(mapping)
    if prefix:  # other modules may be saved beside it
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
    """Return the prefixes of the first convolutions in a mapping, each once."""
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
    """Return the mapping with the parts that wrappers add removed from its names."""
    plain = {_plain_name(name) if isinstance(name, str) else name: value for name, value in mapping.items()}
    if len(plain) < len(mapping):
        raise ValueError(
            "The checkpoint has several tensors whose names differ only in the prefixes of wrappers (module., "
            "_orig_mod.); save the state dict of a single model."
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
        "The checkpoint has no weights of a supported model: there is no conv_in.weight at the top or in a mapping "
        f"inside it. It contains {listed}."
    )
