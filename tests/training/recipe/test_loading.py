# SPDX-License-Identifier: Apache-2.0
"""A recipe's relative paths are those beside its file, and what is wrong with it is said with its name."""

from pathlib import Path

import pytest
import yaml

from diffusers_mdm.training.recipe import loading
from diffusers_mdm.training.recipe.loading import find_recipe, load_recipe, shipped_recipes, without_unseen_captions
from tests.training.tiny_run import RECIPES

ROOT = Path(__file__).parents[3]
TINY = yaml.safe_load((RECIPES / "tiny.yaml").read_text(encoding="utf-8"))


def written(folder: Path, **changes: object) -> Path:
    """The tiny recipe with other parts, in a folder of its own."""
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump({**TINY, **changes}), encoding="utf-8")
    return file


def test_paths_that_are_beside_the_file_are_looked_up_there(tmp_path, monkeypatch):
    (tmp_path / "here" / "pictures").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    file = written(tmp_path / "here", data={"path": "pictures"}, vae={"pretrained": "vae"})
    monkeypatch.chdir(tmp_path / "elsewhere")
    recipe = load_recipe(file)
    assert recipe.data.path == str((tmp_path / "here" / "pictures").resolve())
    assert recipe.vae.pretrained == "vae"  # it is not there: a name of the Hub, or beside the command


@pytest.mark.parametrize("name", ["somebody/pictures", "https://example.org/{000..003}.tar"])
def test_what_is_not_beside_the_file_stays_as_it_is(tmp_path, name):
    data = {"shards": [name]} if "://" in name else {"path": name}
    assert name in load_recipe(written(tmp_path, data=data)).data.origin().names


def test_a_pattern_of_shards_needs_their_folder_alone(tmp_path):
    (tmp_path / "tars").mkdir()
    (shards,) = load_recipe(written(tmp_path, data={"shards": ["tars/{000..999}.tar"]})).data.shards
    assert shards == str((tmp_path / "tars").resolve() / "{000..999}.tar")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stages": []}, "stages"),
        ({"scheduler": {"beta_schedule": "steep"}}, "beta_schedule"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_a_mistake_is_named_with_file_and_field(tmp_path, changes, message):
    file = written(tmp_path, **changes)
    with pytest.raises(ValueError, match=message) as caught:
        load_recipe(file)
    assert str(caught.value).startswith(f"{file}: ")


def test_a_file_that_is_not_there_is_no_mistake_in_it(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_recipe(tmp_path / "none.yaml")


def test_captions_that_no_model_sees_are_empty():
    seen = load_recipe(RECIPES / "tiny.yaml")
    assert without_unseen_captions(seen) is seen
    assert load_recipe(RECIPES / "imagenet_64.yaml").data.caption == ""


@pytest.mark.parametrize("name", ["tiny", "tiny.yaml"])
def test_a_name_is_enough(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_recipe(name) == ROOT / "training" / "recipes" / "tiny.yaml"
    assert load_recipe(find_recipe(name)).name == "tiny"
    (tmp_path / name).write_text("mine", encoding="utf-8")
    assert find_recipe(name) == Path(name)


def test_all_recipes_have_names():
    files = sorted((ROOT / "training" / "recipes").glob("*.yaml"))
    assert list(shipped_recipes().values()) == files


@pytest.mark.parametrize("name", ["tine", "elsewhere/tiny.yaml", "tiny.json"])
def test_a_wrong_path_is_no_name(name):
    with pytest.raises(FileNotFoundError, match="one of the recipes of the package: cc12m_1024, "):
        find_recipe(name)


def test_a_package_without_recipes_says_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "PLACES", (tmp_path / "nowhere",))
    with pytest.raises(FileNotFoundError, match="expected a YAML file"):
        find_recipe("tiny")
