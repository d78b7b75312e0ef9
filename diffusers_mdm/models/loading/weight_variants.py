# SPDX-License-Identifier: Apache-2.0
"""Variants of saved weights (`variant="fp16"`): errors for a missing variant that list the existing ones."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar, cast

from diffusers.utils import SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME

# "model.safetensors" is the name that transformers gives to the weights of a text encoder.
_STEMS = {SAFETENSORS_WEIGHTS_NAME.partition(".")[0], WEIGHTS_NAME.partition(".")[0], "model", "pytorch_model"}
_WEIGHTS = re.compile(
    r"(?P<stem>\w+?)(?P<index>\.(safetensors|bin)\.index)?(\.(?P<variant>[^./]+?))?"
    r"(-\d{5}-of-\d{5}(\.\w+)?)?\.(safetensors|bin|json)"
)

T = TypeVar("T", bound="VariantMixin")


def variants_among(names: Iterable[str]) -> set[str | None]:
    """Return the variants of the weight files among file names; None stands for weights without a variant."""
    matches = (_WEIGHTS.fullmatch(Path(name).name) for name in names)
    return {
        match["variant"]
        for match in matches
        if match and match["stem"] in _STEMS and (match["index"] or not match[0].endswith(".json"))
    }


def variant_advice(variant: str | None, folder: str | os.PathLike | None) -> str | None:
    """Return a sentence about a variant that a folder, or a subfolder of it, does not have.

    Args:
        variant: the requested variant; None for weights without one.
        folder: folder of a saved model or pipeline.

    Returns:
        None if the folder has the variant, has no weights at all, or is not a local folder.
    """
    if folder is None or not Path(folder).is_dir():
        return None
    found = variants_among(path.name for path in Path(folder).rglob("*") if path.is_file())
    if not found or variant in found:
        return None
    named = sorted(f"variant={name!r}" for name in found if name is not None)
    if None in found:
        named.insert(0, "weights without a variant (omit `variant`)")
    wanted = "without a variant" if variant is None else f"of the variant {variant!r}"
    return f"{folder} has no weights {wanted}; it has {', '.join(named)}."


@contextlib.contextmanager
def naming_variants(variant: str | None, folder: str | os.PathLike | None) -> Iterator[None]:
    """Inside the block, add the existing variants to the error of loading a missing one from a folder.

    Raises:
        OSError, ValueError: as diffusers raises them for a missing variant of models and of pipelines.
    """
    try:
        yield
    except (OSError, ValueError) as error:
        advice = variant_advice(variant, folder)
        if advice is None:
            raise
        kind = OSError if isinstance(error, OSError) else ValueError
        raise kind(advice) from error


class VariantMixin:
    """Mixin for `from_pretrained`, which lists the existing variants if the requested one is missing."""

    @classmethod
    def from_pretrained(
        cls: type[T], pretrained_model_name_or_path: str | os.PathLike | None = None, **kwargs: Any
    ) -> T:
        """Load saved weights like `ModelMixin.from_pretrained`, with the same arguments.

        Raises:
            OSError: there is no such model, or it does not have the variant.
        """
        folder = Path(pretrained_model_name_or_path or "", kwargs.get("subfolder") or "")
        with naming_variants(kwargs.get("variant"), folder):
            return cast(Any, super()).from_pretrained(pretrained_model_name_or_path, **kwargs)
