# SPDX-License-Identifier: Apache-2.0
"""A new kind of data is a recipe, a source and a line in each of two registries; the rest of the package follows."""

import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest
import yaml

from diffusers_mdm.training.commands.dry_run import describe_run
from diffusers_mdm.training.commands.fine_tuning import count_images
from diffusers_mdm.training.data import sources
from diffusers_mdm.training.data.numbered import CaptionedImages, ShuffledImages
from diffusers_mdm.training.data.samples import Sample
from diffusers_mdm.training.data.skip_budget import SkipBudget
from diffusers_mdm.training.loop.engine import run_recipe
from diffusers_mdm.training.recipe.data import DATA_KINDS, DataRecipe, Origin
from diffusers_mdm.training.recipe.loading import load_recipe
from diffusers_mdm.training.state.run import RunOptions
from tests.training.image_files import png
from tests.training.tiny_run import COLORS, RECIPES

PACKAGE = Path(sources.__file__).parents[2]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DrawnData(DataRecipe):
    """Plain images that are drawn when they are read."""

    place: ClassVar[str] = "drawn"
    place_means: ClassVar[str] = "a number of plain pictures"

    drawn: int

    def origin(self) -> Origin:
        return Origin((f"drawn {self.drawn}",), "the pictures")


class DrawnSource:
    def __init__(self, recipe: DrawnData):
        self.recipe = recipe

    def __len__(self) -> int:
        return self.recipe.drawn

    def name(self, number: int) -> str:
        return f"picture {number}"

    def read(self, number: int) -> Sample:
        color = COLORS[number % len(COLORS)]
        return Sample(png(color), f"plain {color}")

    def substitutes(self, number: int, request: object) -> Iterator[int]:
        return iter(())

    def training_images(self, decoder, embeddings) -> ShuffledImages:
        return ShuffledImages(CaptionedImages(self, decoder, SkipBudget(0), embeddings))

    def held_out_images(self, decoder, embeddings) -> None:
        return None

    def training_captions(self) -> Iterator[str]:
        return (self.read(number).captions for number in range(len(self)))

    def held_out_captions(self) -> Iterator[str]:
        return iter(())

    def class_names(self) -> tuple[str, ...]:
        return ()

    def num_samples(self) -> int:
        return len(self)

    def describe(self) -> list[str]:
        return [f"{len(self)} plain pictures"]


@pytest.fixture
def recipe_file(tmp_path, monkeypatch):
    monkeypatch.setitem(sources.SOURCES, DrawnData, DrawnSource)
    DATA_KINDS.append(DrawnData)
    values = yaml.safe_load((RECIPES / "tiny.yaml").read_text())
    stages = [{**stage, "steps": 1, "batch_size": 2} for stage in values["stages"][:1]]
    values |= {"data": {"drawn": 6, "center_crop": False}, "stages": stages, "validation": {"prompts": []}}
    (tmp_path / "drawn.yaml").write_text(yaml.safe_dump(values))
    yield tmp_path / "drawn.yaml"
    DATA_KINDS.remove(DrawnData)


def test_a_new_kind_of_data_is_trained_on(recipe_file, tmp_path, no_forward):
    recipe = load_recipe(recipe_file)
    assert recipe.data == DrawnData(drawn=6, center_crop=False)
    assert count_images(recipe.data, "--num_train_epochs") == 6
    assert "data: 6 plain pictures" in describe_run(recipe)
    folder = run_recipe(recipe, RunOptions(tmp_path / "out", report_to=None))
    assert json.loads((folder / "recipe.json").read_text())["data"]["drawn"] == 6
    assert load_recipe(folder / "recipe.json").data == recipe.data
    assert "the pictures `drawn 6`" in (folder / "README.md").read_text()


def test_nothing_but_the_registries_knows_the_kinds():
    """Beside what reads a kind, two files name it: adding one edits these two."""
    knowing = set()
    for path in PACKAGE.glob("training/**/*.py"):
        name = path.relative_to(PACKAGE / "training").as_posix()
        if re.search(r"\b(TableData|ShardData)\b", path.read_text(encoding="utf-8")):
            knowing.add(name)
    own = {name for name in knowing if name.startswith(("data/tables/", "data/shards/"))}
    # Generated images are compared with a folder or data set, whatever the model was trained on.
    comparing = {name for name in knowing if name.startswith("commands/evaluation/")}
    assert knowing - own - comparing == {"recipe/data.py", "data/sources.py"}
