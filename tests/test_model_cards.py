# SPDX-License-Identifier: Apache-2.0
"""Each folder in model_cards/ is what would be pushed to the Hub: complete, small, loadable, honest about itself."""

import json
from pathlib import Path

import pytest
import torch
import yaml

from diffusers_mdm import MDMPipeline
from diffusers_mdm.training.recipe import load_recipe

ROOT = Path(__file__).parents[1]
CARDS = sorted(path.parent for path in (ROOT / "model_cards").glob("*/model_index.json"))
MAX_WEIGHT_BYTES = 20_000_000

pytestmark = pytest.mark.parametrize("card", CARDS, ids=[card.name for card in CARDS])


def front_matter(card: Path) -> dict:
    _, header, _ = (card / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(header)


def test_card_says_what_the_hub_asks(card):
    header = front_matter(card)
    assert header["library_name"] == "diffusers"
    assert header["pipeline_tag"] == "text-to-image"
    assert header["license"]
    assert "diffusers-mdm" in header["tags"]
    assert (card / header["license_link"]).is_file()


def test_pictures_in_the_card_exist(card):
    text = (card / "README.md").read_text(encoding="utf-8")
    for line in text.splitlines():
        if line.startswith("!["):
            assert (card / line.rpartition("(")[2].rstrip(")")).is_file()


def test_weights_are_small_safetensors_in_half_precision(card):
    weights = list(card.rglob("*.safetensors"))
    assert weights
    assert sum(path.stat().st_size for path in weights) <= MAX_WEIGHT_BYTES
    assert not [path for path in card.rglob("*") if path.suffix in {".bin", ".pth", ".pt", ".pkl", ".ckpt"}]
    pipeline = MDMPipeline.from_pretrained(card, dtype=torch.float16)
    assert {parameter.dtype for parameter in pipeline.unet.parameters()} == {torch.float16}


def test_folder_draws_at_every_level(card):
    pipeline = MDMPipeline.from_pretrained(card, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    drawn = pipeline(
        "strawberry, 3d render",
        num_inference_steps=8,
        guidance_scale=3.0,
        generator=torch.Generator().manual_seed(0),
        output_type="pt",
        output_pyramid=True,
    )
    assert [level.shape[-1] for level in drawn.pyramid] == list(pipeline.unet.sample_sizes)
    # The levels show the same picture: pooled, the outer one is close to the inner one (0.056; mirrored 0.097).
    inner, outer = drawn.pyramid[0], drawn.pyramid[-1]
    pooled = torch.nn.functional.avg_pool2d(outer, outer.shape[-1] // inner.shape[-1])
    assert (pooled - inner).abs().mean() < 0.07


def test_recipe_is_the_one_of_the_model(card):
    recipe = load_recipe(card / "recipe.yaml")
    config = json.loads((card / "unet" / "config.json").read_text())
    assert config["block_out_channels"] == [list(row.block_out_channels) for row in recipe.rows]
    assert config["sample_size"] == recipe.sample_size


def test_reported_scores_are_in_the_card(card):
    """Numbers in the card are those of the evaluation command's report."""
    text = (card / "README.md").read_text(encoding="utf-8")
    for score in json.loads((card / "scores.json").read_text())["scores"].values():
        for share in ("picture", "style"):
            assert f"{score[share]:.1%}".replace("%", " %") in text
