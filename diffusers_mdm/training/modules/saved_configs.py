# SPDX-License-Identifier: Apache-2.0
"""Corrections of components before they are saved."""

import torch
from diffusers.configuration_utils import FrozenDict
from tokenizers import Tokenizer
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from ...library_internals import ORIGIN_KEY, replace_config


def forget_origin(*modules: torch.nn.Module) -> None:
    """Remove from models where they were loaded from, so that saved files do not name a local folder.

    diffusers stores the argument of `from_pretrained` as `_name_or_path` in a model's config, passes it on to models
    created from that config, and writes it to `config.json`; transformers also stores it, and writes it depending on
    the version.

    Args:
        modules: models of diffusers or transformers; modules without such a config are not changed.
    """
    for module in modules:
        config = getattr(module, "config", None)
        if isinstance(config, FrozenDict):
            # Keys of a frozen config cannot be removed, so it is replaced, as in diffusers' `register_to_config`.
            kept = {key: value for key, value in config.items() if key != ORIGIN_KEY}
            replace_config(module, FrozenDict(kept))
        elif isinstance(config, PretrainedConfig):
            config.name_or_path = ""
            setattr(module, "name_or_path", "")  # noqa: B010


def forget_last_call(tokenizer: PreTrainedTokenizerBase) -> None:
    """Reset a tokenizer's truncation and padding, so that its saved files do not depend on the text that it saw last.

    Tokenizers of the library tokenizers keep both from their last call, and write them to `tokenizer.json`; every
    call of transformers sets them anew.

    Args:
        tokenizer: a tokenizer of transformers; those in Python have nothing to reset.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if isinstance(backend, Tokenizer):
        backend.no_truncation()
        backend.no_padding()
