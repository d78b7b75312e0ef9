# SPDX-License-Identifier: Apache-2.0
"""Variants of saved weights (`variant="fp16"`): when the one that was asked for is missing, say which there are."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar, cast

from diffusers.utils import SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME

# "model.safetensors" is what transformers calls the weights of a text encoder.
_STEMS = {SAFETENSORS_WEIGHTS_NAME.partition(".")[0], WEIGHTS_NAME.partition(".")[0], "model", "pytorch_model"}
_WEIGHTS = re.compile(
    r"(?P<stem>\w+?)(?P<index>\.(safetensors|bin)\.index)?(\.(?P<variant>[^./]+?))?"
    r"(-\d{5}-of-\d{5}(\.\w+)?)?\.(safetensors|bin|json)"
)

T = TypeVar("T", bound="VariantMixin")


def variants_among(names: Iterable[str]) -> set[str | None]:
    """Variants of the weight files among file names; `None` stands for weights without one."""
    matches = (_WEIGHTS.fullmatch(Path(name).name) for name in names)
    return {
        match["variant"]
        for match in matches
        if match and match["stem"] in _STEMS and (match["index"] or not match[0].endswith(".json"))
    }


def variant_advice(variant: str | None, folder: str | os.PathLike | None) -> str | None:
    """A sentence about a variant that a folder, or a folder in it, does not have.

    Args:
        variant: that was asked for; `None` for weights without one.
        folder: of a saved model or pipeline.

    Returns:
        `None` if the folder has the variant, has no weights at all, or is no folder of this machine.
    """
    if folder is None or not Path(folder).is_dir():
        return None
    found = variants_among(path.name for path in Path(folder).rglob("*") if path.is_file())
    if not found or variant in found:
        return None
    named = sorted(f"variant={name!r}" for name in found if name is not None)
    if None in found:
        named.insert(0, "weights without a variant (leave `variant` out)")
    wanted = "without a variant" if variant is None else f"of the variant {variant!r}"
    return f"{folder} has no weights {wanted}; it has {', '.join(named)}."


@contextlib.contextmanager
def naming_variants(variant: str | None, folder: str | os.PathLike | None) -> Iterator[None]:
    """While something is loaded from a folder: if that fails for want of a variant, say which there are.

    Raises:
        OSError, ValueError: as diffusers raises them for a missing variant, of models and of pipelines.
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
    """`from_pretrained` that names the variants there are when the one asked for is missing."""

    @classmethod
    def from_pretrained(
        cls: type[T], pretrained_model_name_or_path: str | os.PathLike | None = None, **kwargs: Any
    ) -> T:
        """Load saved weights as `ModelMixin.from_pretrained` does, with the same arguments.

        Raises:
            OSError: there is no such model, or it lacks the variant.
        """
        folder = Path(pretrained_model_name_or_path or "", kwargs.get("subfolder") or "")
        with naming_variants(kwargs.get("variant"), folder):
            return cast(Any, super()).from_pretrained(pretrained_model_name_or_path, **kwargs)
