# SPDX-License-Identifier: Apache-2.0
"""Loading a model from one file: as diffusers does, with a reader of our own for the files that it refuses."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from diffusers.loaders import FromOriginalModelMixin

from ...config_reading import read_json, read_yaml

# Returns what a local checkpoint holds, for the class's `checkpoint_mapping_fn`; the second argument says which of
# several weights to take.
CheckpointReader = Callable[[Path, str | None], dict[str, Any]]

_READERS: dict[str, CheckpointReader] = {}

T = TypeVar("T", bound="SingleFileMixin")


def register_checkpoint_reader(class_name: str, reader: CheckpointReader) -> None:
    """Let `from_single_file` of a class, and of those derived from it, read local files with `reader`.

    Models know no foreign formats: whoever does registers here. Of two readers for a class the last one counts.

    Args:
        class_name: `__name__` of the class.
        reader: takes the path of any file but safetensors, which diffusers reads well.
    """
    _READERS[class_name] = reader


class SingleFileMixin(FromOriginalModelMixin):
    """`from_single_file` that reads local files with the reader that is registered for the class."""

    @classmethod
    def from_single_file(
        cls: type[T],
        pretrained_model_link_or_path_or_dict: str | os.PathLike | dict[str, Any] | None = None,
        state_dict_key: str | None = None,
        **kwargs: Any,
    ) -> T:
        """Load a model from one file of weights: a published checkpoint, or weights that this class saved.

        A local `.pth` or `.bin` is read without running anything from it; diffusers' own reader refuses what the
        published trainer writes.

        Args:
            pretrained_model_link_or_path_or_dict: e.g. `vis_model.pth` or `diffusion_pytorch_model.safetensors`.
            state_dict_key: which weights to take of a local `.pth` that holds several models, e.g. "ema".
            kwargs: as in `FromOriginalModelMixin.from_single_file`: `config` (a folder or a repository on the Hub with
                our `config.json`), or `original_config` (the published YAML, or what it holds). Both may be left out
                if our `config.json` is beside a local file, or if the checkpoint holds its trainer's arguments.

        Raises:
            FileNotFoundError: there is no such YAML.
            ValueError: the file is damaged, holds no weights of such a model or several, does not fit its config, or
                nothing says what its config is.
        """
        source = pretrained_model_link_or_path_or_dict
        reader = next((_READERS[base.__name__] for base in cls.__mro__ if base.__name__ in _READERS), None)
        path = Path(source) if isinstance(source, (str, os.PathLike)) and Path(source).is_file() else None
        if reader is not None and path is not None and path.suffix != ".safetensors":
            source = reader(path, state_dict_key)
        elif state_dict_key is not None:
            raise ValueError("`state_dict_key` chooses among the models in a local .pth file; leave it out here.")
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
        """Say where the config is if the caller does not."""
        config_file = path.with_name("config.json") if path is not None else None
        if config_file is not None and config_file.is_file():
            config = read_json(config_file)
            if isinstance(config, dict) and config.get("_class_name") in [base.__name__ for base in cls.__mro__]:
                return {"config": str(config_file.parent)}
        if isinstance(source, dict) and source.get("args") is not None:
            return {"original_config": {}}
        raise ValueError(
            "Weights alone do not say what model they are of. Give `config=` (a folder, or a repository on the Hub, "
            f"with the config.json of the {cls.__name__}) for weights that this package saved, or `original_config=` "
            "(the YAML file of the model) for a published checkpoint."
        )
