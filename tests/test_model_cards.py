# SPDX-License-Identifier: Apache-2.0
"""Each folder in model_cards/ is what would be pushed to the Hub: complete, small, loadable, honest about itself."""

import json
from pathlib import Path

import pytest
import torch
import yaml

import diffusers_mdm
from diffusers_mdm.training.recipe.loading import load_recipe

ROOT = Path(__file__).parents[1]
CARDS = sorted(path.parent for path in (ROOT / "model_cards").glob("*/model_index.json"))
MAX_WEIGHT_BYTES = 20_000_000  # of a file
# By pipeline: the task in the words of the Hub, three different things to draw, and the argument that takes them.
TASKS = {
    "MDMPipeline": ("text-to-image", "prompt", ["strawberry, 3d render", "red heart, noto style", "frog, flat icon"]),
    "MDMClassConditionalPipeline": ("unconditional-image-generation", "class_labels", ["hearts", "smiling", "fruit"]),
    "MDMVideoPipeline": (
        "text-to-video",
        "prompt",
        ["red heart, 3d animation", "frog, 3d animation", "rocket, 3d animation"],
    ),
}

pytestmark = pytest.mark.parametrize("card", CARDS, ids=[card.name for card in CARDS])


def class_name(card: Path) -> str:
    return json.loads((card / "model_index.json").read_text())["_class_name"]


def load(card: Path, **settings):
    pipeline = getattr(diffusers_mdm, class_name(card)).from_pretrained(card, **settings)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def front_matter(card: Path) -> dict:
    _, header, _ = (card / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(header)


def test_card_says_what_the_hub_asks(card):
    header = front_matter(card)
    assert header["library_name"] == "diffusers"
    assert header["pipeline_tag"] == TASKS[class_name(card)][0]
    assert header["license"]
    assert "diffusers-mdm" in header["tags"]
    assert (card / header["license_link"]).is_file()


def test_images_in_the_card_exist(card):
    text = (card / "README.md").read_text(encoding="utf-8")
    for line in text.splitlines():
        if line.startswith("!["):
            assert (card / line.rpartition("(")[2].rstrip(")")).is_file()


def test_weights_are_small_safetensors_in_half_precision(card):
    weights = list(card.rglob("*.safetensors"))
    assert weights
    assert max(path.stat().st_size for path in weights) <= MAX_WEIGHT_BYTES
    assert not [path for path in card.rglob("*") if path.suffix in {".bin", ".pth", ".pt", ".pkl", ".ckpt"}]
    pipeline = load(card, dtype=torch.float16)
    assert {parameter.dtype for parameter in pipeline.unet.parameters()} == {torch.float16}


def test_folder_draws_the_same_at_every_level(card):
    """Pooled, the outer level's drawing is nearer to its own inner one than to those of the other things."""
    pipeline = load(card, dtype=torch.float32)
    _, argument, things = TASKS[class_name(card)]
    drawn = pipeline(
        **{argument: things},
        num_inference_steps=8,
        guidance_scale=3.0,
        generator=[torch.Generator().manual_seed(0) for _ in things],
        output_type="pt",
        output_pyramid=True,
    )
    assert [level.shape[-1] for level in drawn.pyramid] == list(pipeline.unet.sample_sizes)
    inner, outer = (still(level) for level in (drawn.pyramid[0], drawn.pyramid[-1]))
    pooled = torch.nn.functional.avg_pool2d(outer, outer.shape[-1] // inner.shape[-1])
    distances = torch.cdist(pooled.flatten(1), inner.flatten(1))
    assert distances.argmin(1).tolist() == list(range(len(things)))


def still(level: torch.Tensor) -> torch.Tensor:
    """Images (B, 3, H, W), for clips (B, F, 3, H, W) the mean of their frames."""
    return level.mean(1) if level.ndim == 5 else level


def test_recipe_is_the_one_of_the_model(card):
    recipe = load_recipe(card / "recipe.yaml")
    config = json.loads((card / "unet" / "config.json").read_text())
    assert config["block_out_channels"] == [list(row.block_out_channels) for row in recipe.level_configs]
    assert config["sample_size"] == recipe.sample_size


def test_reported_scores_are_in_the_card(card):
    """Numbers in the card are those of the evaluation command's report."""
    text = (card / "README.md").read_text(encoding="utf-8")
    report = json.loads((card / "scores.json").read_text())
    shares = [score[share] for score in report.get("scores", {}).values() for share in ("image", "style")]
    shares += [report[name] for name in ("mean", "clip") if name in report]
    assert shares
    for share in shares:
        assert f"{share:.1%}".replace("%", " %") in text
