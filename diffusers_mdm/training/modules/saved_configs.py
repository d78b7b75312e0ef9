# SPDX-License-Identifier: Apache-2.0
"""What is put right in a component before it is saved."""

import torch
from diffusers.configuration_utils import FrozenDict
from transformers import PretrainedConfig

from ...library_internals import ORIGIN_KEY, replace_config


def forget_origin(*modules: torch.nn.Module) -> None:
    """Take out of models where they were loaded from, so that what is saved does not name a folder of this machine.

    diffusers keeps what `from_pretrained` was given as `_name_or_path` in a model's config, hands it on to models made
    from that config, and writes it into `config.json`; transformers keeps it, too, and writes it or not by version.

    Args:
        modules: models of diffusers or transformers; modules without such a config stay as they are.
    """
    for module in modules:
        config = getattr(module, "config", None)
        if isinstance(config, FrozenDict):
            # A frozen config loses no key; a new one takes its place, as in diffusers' `register_to_config`.
            kept = {key: value for key, value in config.items() if key != ORIGIN_KEY}
            replace_config(module, FrozenDict(kept))
        elif isinstance(config, PretrainedConfig):
            config.name_or_path = ""
            setattr(module, "name_or_path", "")  # noqa: B010
