# SPDX-License-Identifier: Apache-2.0
"""Loading a model from a single file, with a reader for files that diffusers refuses."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from diffusers.loaders import FromOriginalModelMixin

from ...config_reading import read_json, read_yaml

# Reads a local checkpoint for the class's `checkpoint_mapping_fn`; the second argument selects one of several weights.
CheckpointReader = Callable[[Path, str | None], dict[str, Any]]

_READERS: dict[str, CheckpointReader] = {}

T = TypeVar("T", bound="SingleFileMixin")


def register_checkpoint_reader(class_name: str, reader: CheckpointReader) -> None:
    """Let `from_single_file` of a class and its subclasses read local files with `reader`.

    The models themselves do not know foreign formats; modules that do register their readers here. If there are two
    readers for a class, the last one is used.

    Args:
        class_name: `__name__` of the class.
        reader: called with the path of any file except safetensors, which diffusers reads itself.
    """
    _READERS[class_name] = reader


class SingleFileMixin(FromOriginalModelMixin):
    """Mixin for `from_single_file`, which reads local files with the reader registered for the class."""

    @classmethod
    def from_single_file(
        cls: type[T],
        pretrained_model_link_or_path_or_dict: str | os.PathLike | dict[str, Any] | None = None,
        state_dict_key: str | None = None,
        **kwargs: Any,
    ) -> T:
        """Load a model from a single file of weights: a published checkpoint, or weights saved by this class.

        Nothing in a local `.pth` or `.bin` is executed; diffusers' own reader refuses files of the published trainer.

        Args:
            pretrained_model_link_or_path_or_dict: e.g. `vis_model.pth` or `diffusion_pytorch_model.safetensors`.
            state_dict_key: which weights to take from a local `.pth` that has several models, e.g. "ema".
            kwargs: as in `FromOriginalModelMixin.from_single_file`: `config` (a folder or a repository on the Hub with
                our `config.json`), or `original_config` (the published YAML, or its contents). Both can be omitted if
                our `config.json` is beside a local file, or if the checkpoint contains its trainer's arguments.

        Raises:
            FileNotFoundError: there is no such YAML.
            ValueError: the file is damaged, has no weights of such a model or several, does not fit its config, or its
                config is unknown.
        """
        source = pretrained_model_link_or_path_or_dict
        reader = next((_READERS[base.__name__] for base in cls.__mro__ if base.__name__ in _READERS), None)
        path = Path(source) if isinstance(source, (str, os.PathLike)) and Path(source).is_file() else None
        if reader is not None and path is not None and path.suffix != ".safetensors":
            source = reader(path, state_dict_key)
        elif state_dict_key is not None:
            raise ValueError("`state_dict_key` chooses among the models in a local .pth file; omit it here.")
        if isinstance(kwargs.get("config"), os.PathLike):
            kwargs["config"] = os.fspath(kwargs["config"])
        original_config = kwargs.get("original_config")
        if isinstance(original_config, (str, os.PathLike)) and not str(original_config).startswith("http"):
            kwargs["original_config"] = read_yaml(Path(original_config))
        if kwargs.get("config") is None and original_config is None:
            kwargs |= cls._config_arguments(source, path)
        return super().from_single_file(source, **kwargs)

    @classmethod
    def _config_arguments(cls, source: Any, path: Path | None) -> dict[str, Any]:
        """Find the config if the caller does not pass it."""
        config_file = path.with_name("config.json") if path is not None else None
        if config_file is not None and config_file.is_file():
            config = read_json(config_file)
            if isinstance(config, dict) and config.get("_class_name") in [base.__name__ for base in cls.__mro__]:
                return {"config": str(config_file.parent)}
        if isinstance(source, dict) and source.get("args") is not None:
            return {"original_config": {}}
        raise ValueError(
            "The config of the model cannot be inferred from its weights. Pass `config=` (a folder, or a "
            f"repository on the Hub, with the config.json of the {cls.__name__}) for weights that this package "
            "saved, or `original_config=` (the YAML file of the model) for a published checkpoint."
        )
