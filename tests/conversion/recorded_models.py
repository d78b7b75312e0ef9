# SPDX-License-Identifier: Apache-2.0
"""The recorded models of the published code, and how they are run here."""

import functools
from pathlib import Path
from typing import Any

import torch

from diffusers_mdm.conversion.untrusted_checkpoint import read_untrusted_checkpoint
from diffusers_mdm.models.frames import tile_frames, untile_frames

GOLDEN = Path(__file__).parents[1] / "fixtures" / "golden"
APPLE_MODELS = ["unet", "unet_options", "nested_unet", "nested_unet_attn", "nested2_unet", "nested_unet_video"]
# Largest model, not copied into the repository; present beside a developer's checkout only.
COMMUNITY_NESTED = Path(__file__).parents[3] / "shared" / "golden" / "community_nested_unet"


def checkpoint(name: str) -> Path:
    return GOLDEN / name / "vis_model.pth"


def config(name: str) -> Path:
    return GOLDEN / name / "config.yaml"


@functools.cache
def contents(name: str) -> dict[str, Any]:
    """What a checkpoint holds, read once; tests must not change it."""
    return read_untrusted_checkpoint(checkpoint(name))


def predict(unet, io: dict[str, torch.Tensor], micros: bool = True, mask: bool = True) -> list[torch.Tensor]:
    """Run on recorded inputs; recordings count levels from the outermost, so the result is turned around, and tile the
    frames of clips in one image."""
    num_levels = sum(name.startswith("x_t.") for name in io)
    levels = [io[f"x_t.{index}"] for index in reversed(range(num_levels))]
    is_video = max(unet.level_frames) > 1
    if is_video:
        levels = [untile_frames(level, frames) for level, frames in zip(levels, unet.level_frames, strict=True)]
    given = {name.removeprefix("micros."): value for name, value in io.items() if name.startswith("micros.")}
    with torch.no_grad():
        output = unet(
            levels,
            io["times"],
            encoder_hidden_states=io["lm_outputs"],
            encoder_attention_mask=io["lm_mask"] if mask else None,
            added_cond_kwargs=given if micros else None,
        ).sample
    return [tile_frames(level) if is_video else level for level in reversed(output)]
