# SPDX-License-Identifier: Apache-2.0
"""Autoguidance: away from what a weaker model of the same kind predicts (Karras et al. 2024, arXiv:2406.02507).

The weaker model, an earlier checkpoint or a smaller one, makes the same mistakes as the model, only more of them. Its
prediction, with the prompt, takes the place of the one without the prompt, in every method of guidance.
"""

from __future__ import annotations

from typing import Any

from diffusers_mdm.checked_values import describe
from diffusers_mdm.models import NestedUNetModel

_SAME = ("in_channels", "out_channels", "cross_attention_dim", "num_class_embeds", "encoder_hid_dim")


def check_weaker_model(unet: Any, weaker: Any, num_levels: int, device: Any) -> None:
    """Refuse a `guidance_unet` that cannot stand beside the model.

    Args:
        unet: the model.
        weaker: the `guidance_unet`.
        num_levels: how many levels are drawn.
        device: where the drawing is made.

    Raises:
        ValueError: says what differs.
    """
    if not isinstance(weaker, NestedUNetModel):
        raise ValueError(f"`guidance_unet` has to be a NestedUNetModel, but is {describe(weaker)}.")
    different = [name for name in _SAME if unet.config[name] != weaker.config[name]]
    for name in ("level_ratios", "level_frames"):
        if getattr(unet, name)[:num_levels] != getattr(weaker, name)[:num_levels]:
            different.append(name)
    if different:
        raise ValueError(
            f"`guidance_unet` differs from the pipeline's model in {', '.join(different)}; expected a weaker model of "
            "the same pictures, texts and classes, such as an earlier checkpoint."
        )
    if weaker.device.type != device.type:
        raise ValueError(f"`guidance_unet` is on {weaker.device}, and the drawing on {device}: move it there.")
