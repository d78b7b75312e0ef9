# SPDX-License-Identifier: Apache-2.0
"""Loading a model from one file: the host's way, with a reader of its own for files that the host refuses."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from diffusers.loaders import FromOriginalModelMixin

# Returns what a local checkpoint holds, for the class's `checkpoint_mapping_fn`.
CheckpointReader = Callable[[Path], dict[str, Any]]

_READERS: dict[str, CheckpointReader] = {}

T = TypeVar("T", bound="SingleFileMixin")


def register_checkpoint_reader(class_name: str, reader: CheckpointReader) -> None:
    """Let `from_single_file` of a class, and of those derived from it, read local files with `reader`.

    Models know no foreign formats: whoever does registers here. Of two readers for a class the last one counts.

    Args:
        class_name: `__name__` of the class.
        reader: takes the path of any file but safetensors, which the host reads well.
    """
    _READERS[class_name] = reader


class SingleFileMixin(FromOriginalModelMixin):
    """`from_single_file` that reads local files with the reader that is registered for the class."""

    @classmethod
    def from_single_file(
        cls: type[T],
        pretrained_model_link_or_path_or_dict: str | os.PathLike | dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> T:
        """Load a published checkpoint, as the host does from a link, a path or a dict.

        A local `.pth` is read without running anything from it; the host's own reader refuses what the published
        trainer writes.

        Args:
            pretrained_model_link_or_path_or_dict: e.g. `vis_model.pth`.
            kwargs: as in `FromOriginalModelMixin.from_single_file`: `config` (a folder with our `config.json`), or
                `original_config` (the published YAML).
        """
        source = pretrained_model_link_or_path_or_dict
        reader = next((_READERS[base.__name__] for base in cls.__mro__ if base.__name__ in _READERS), None)
        if reader is not None and isinstance(source, (str, os.PathLike)):
            path = Path(source)
            if path.is_file() and path.suffix != ".safetensors":
                source = reader(path)
        return super().from_single_file(source, **kwargs)
