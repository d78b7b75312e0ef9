# SPDX-License-Identifier: Apache-2.0
"""The inner levels of mdm-emoji-256 are those of mdm-emoji-64, as both cards say."""

from pathlib import Path

import torch

from diffusers_mdm import MDMPipeline

CARDS = Path(__file__).parents[1] / "model_cards"


def test_without_its_outermost_level_the_larger_model_draws_as_the_smaller_one():
    drawn = []
    for name in ("mdm-emoji-64", "mdm-emoji-256"):
        pipeline = MDMPipeline.from_pretrained(CARDS / name, dtype=torch.float32)
        pipeline.set_progress_bar_config(disable=True)
        drawn.append(
            pipeline(
                "strawberry, 3d render",
                height=64,
                num_inference_steps=2,
                guidance_scale=1.5,
                generator=torch.Generator().manual_seed(0),
                output_type="pt",
            ).images
        )
    torch.testing.assert_close(*drawn, atol=1e-5, rtol=0)
