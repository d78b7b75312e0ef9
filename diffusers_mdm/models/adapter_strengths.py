# SPDX-License-Identifier: Apache-2.0
"""Different strengths of LoRA adapters for different parts of the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from torch import nn

from ..checked_values import check_number, describe

Strength = float | Mapping[str, float] | None


class AdapterStrengthMixin:
    """Mixin for `set_adapters` with strengths that are numbers, or numbers by part of the model."""

    def set_adapters(self, adapter_names: Sequence[str] | str, weights: Strength | Sequence[Strength] = None) -> None:
        """Activate adapters, each with a strength.

        Args:
            adapter_names: one name or several.
            weights: one strength for all adapters, or a list with one per adapter: a number, None for 1, or a dict of
                numbers by parts of module names, e.g. `{"levels.0": 0.5, "up_blocks": 0.8}`. The first part that a
                layer's name contains applies; layers whose name contains none have strength 1.

        Raises:
            ValueError: a dict is nested, a strength is not a number, or no adapted layer has a part in its name.
        """
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        given = weights if isinstance(weights, (list, tuple)) else [weights] * len(names)
        strengths = [_by_layer(cast(nn.Module, self), strength) for strength in given]
        cast(Any, super()).set_adapters(names, strengths)


def _by_layer(model: nn.Module, strength: Any) -> Any:
    """Expand a dict of strengths to the full names of the adapted layers; a number is returned as it is."""
    if strength is None:
        return None
    if not isinstance(strength, Mapping):
        check_number(strength, "The strength of an adapter")
        return strength
    for part, value in strength.items():
        if isinstance(value, (Mapping, list, tuple)):
            raise ValueError(
                f"The strength of {part!r} is {describe(value)}; expected a number: the dict of strengths cannot "
                f"be nested; its keys are parts of module names, e.g. {{'levels.0.encoder': 0.5}}."
            )
        check_number(value, f"The strength of {part!r}")
    # The layers that peft has adapted are the ones with scales.
    layers = [name for name, module in model.named_modules() if isinstance(getattr(module, "scaling", None), dict)]
    unknown = [part for part in strength if not any(str(part) in name for name in layers)]
    if unknown:
        raise ValueError(
            f"No layer with an adapter has {', '.join(map(repr, unknown))} in its name; expected parts of module "
            f"names, e.g. of {layers[0]!r}."
            if layers
            else "The model has no adapters; load or add one first."
        )
    found = {name: next((value for part, value in strength.items() if part in name), 1.0) for name in layers}
    # diffusers takes the first entry that a layer's name contains, so a name must come after the ones that it is a
    # prefix of.
    return dict(sorted(found.items(), key=lambda entry: len(entry[0]), reverse=True))
