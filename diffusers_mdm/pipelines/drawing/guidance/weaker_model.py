# SPDX-License-Identifier: Apache-2.0
"""Autoguidance: guidance away from the prediction of a weaker model (Karras et al. 2024, arXiv:2406.02507).

The weaker model, an earlier checkpoint or a smaller model, makes the same errors as the model, only larger ones. In
every guidance method, its prediction with the prompt replaces the prediction without the prompt.
"""

from __future__ import annotations

from typing import Any

from diffusers_mdm.checked_values import describe
from diffusers_mdm.models import NestedUNetModel

_SAME = ("in_channels", "out_channels", "cross_attention_dim", "num_class_embeds", "encoder_hid_dim")


def check_weaker_model(unet: Any, weaker: Any, num_levels: int, device: Any) -> None:
    """Check that a `guidance_unet` is compatible with the model.

    Args:
        unet: the model.
        weaker: the `guidance_unet`.
        num_levels: number of generated levels.
        device: device of the drawing.

    Raises:
        ValueError: names the difference.
    """
    if not isinstance(weaker, NestedUNetModel):
        raise ValueError(f"`guidance_unet` has to be a NestedUNetModel, but is {describe(weaker)}.")
    different = [name for name in _SAME if unet.config[name] != weaker.config[name]]
    for name in ("level_ratios", "level_frames"):
        if getattr(unet, name)[:num_levels] != getattr(weaker, name)[:num_levels]:
            different.append(name)
    if different:
        raise ValueError(
            f"`guidance_unet` differs from the pipeline's model in {', '.join(different)}; expected a weaker model "
            f"for the same images, texts and classes, such as an earlier checkpoint."
        )
    if weaker.device.type != device.type:
        raise ValueError(f"`guidance_unet` is on {weaker.device}, but the drawing on {device}: move it there.")
