# SPDX-License-Identifier: Apache-2.0
import dataclasses

import pytest
import torch

from diffusers_mdm import MDMClassConditionalPipeline, MDMPipeline
from diffusers_mdm.training.data.class_names import find_class_names
from diffusers_mdm.training.modules.classes import (
    check_class_labels,
    class_argument,
    class_number,
    draws_classes_alone,
    keep_class_names,
    pipeline_class,
)
from diffusers_mdm.training.recipe.data import DataRecipe
from tests.pipelines.tiny_tasks import ID2LABEL, task
from tests.training.labelled_images import NAMES, class_recipe, save_class_pipeline, write_labelled
from tests.training.tiny_run import tiny_recipe


@pytest.fixture(scope="module")
def named_dir(images_dir, tmp_path_factory):
    return write_labelled(images_dir, tmp_path_factory.mktemp("named"))


def test_a_recipe_of_classes_makes_the_pipeline_of_classes(images_dir, named_dir):
    assert (pipeline_class(class_recipe(named_dir)), pipeline_class(tiny_recipe(images_dir))) == (
        MDMClassConditionalPipeline,
        MDMPipeline,
    )
    assert draws_classes_alone(class_recipe(named_dir))
    tiny = tiny_recipe(images_dir)
    data = dataclasses.replace(tiny.data, label_column="kind")
    both = dataclasses.replace(tiny, model={**tiny.model, "num_class_embeds": 4}, data=data)
    assert pipeline_class(both) is MDMClassConditionalPipeline
    assert not draws_classes_alone(both)


# --- names ---


def test_names_are_those_of_the_label_column(named_dir, images_dir, tmp_path):
    assert find_class_names(class_recipe(named_dir)) == NAMES
    assert find_class_names(class_recipe(write_labelled(images_dir, tmp_path, names=None))) == {}
    assert find_class_names(tiny_recipe(images_dir)) == {}
    shards = DataRecipe(shards=("missing.tar",), label_column="cls", caption="")
    assert find_class_names(class_recipe(named_dir, data=shards)) == {}


def test_too_few_embeddings_for_the_named_classes_are_refused(named_dir):
    with pytest.raises(ValueError, match=r"'kind' .* has 3 classes.*num_class_embeds` must be at least 4 .*it is 3"):
        find_class_names(class_recipe(named_dir, num_class_embeds=3))


def test_a_column_without_whole_numbers_is_refused_with_those_that_have_them(images_dir, named_dir):
    data = DataRecipe(path=str(images_dir), label_column="text", caption="")
    with pytest.raises(ValueError, match=r"'text' .* must contain classes.*Columns with integers: none"):
        find_class_names(class_recipe(named_dir, data=data))
    data = DataRecipe(path=str(named_dir), label_column="image", caption="")
    with pytest.raises(ValueError, match="Columns with integers: kind"):
        find_class_names(class_recipe(named_dir, data=data))


def test_a_pipeline_keeps_its_names_and_takes_those_it_lacks(caplog):
    saved = {0: "tench, Tinca tinca", 1: "cat"}
    assert keep_class_names(saved, {0: "tench", 2: "dog"}) == {0: "tench, Tinca tinca", 1: "cat", 2: "dog"}
    assert keep_class_names({}, NAMES) == NAMES
    assert not caplog.records
    assert keep_class_names(saved, {0: "cat", 1: "tench"}) == saved
    assert "2 class(es) have different names" in caplog.text
    assert "0 is 'tench, Tinca tinca' in the pipeline, and 'cat' in the data" in caplog.text


# --- labels ---


def test_labels_outside_of_the_model_are_refused():
    check_class_labels(torch.tensor([0, 2]), 4)
    check_class_labels(None, 4)
    for wrong in (3, 7, -1):  # 3 stands for no class
        with pytest.raises(ValueError, match=rf"has class {wrong}, but the model has the classes 0 to 2.*its 4 emb"):
            check_class_labels(torch.tensor([0, wrong]), 4)


def test_validation_prompts_are_names_synonyms_or_numbers():
    pipeline = task("class").make()
    assert [class_number(pipeline, text) for text in ("cat, tabby", "tabby", "cat", "2", "red apple")] == [
        0,
        0,
        0,
        2,
        2,
    ]
    with pytest.raises(ValueError, match=r"No class is called 'hose'; did you mean 'house'"):
        class_number(pipeline, "hose")
    with pytest.raises(ValueError, match=r"`validation\.prompts` has 5.*0 to 3"):
        class_number(pipeline, "5")


def test_a_name_of_digits_is_a_name(tmp_path):
    folder = save_class_pipeline(tmp_path, {0: "10", 1: "1", 2: "0"})
    pipeline = MDMClassConditionalPipeline.from_pretrained(folder)
    assert [class_number(pipeline, text) for text in ("10", "1", "0", "2")] == [0, 1, 2, 2]


def test_examples_pass_what_a_pipeline_takes():
    assert [class_argument(text, ID2LABEL) for text in ("tabby", "cat, tabby", "2")] == ["tabby", 0, 2]
    pipeline = task("class").make()
    for text in ("tabby", "cat, tabby", "2"):
        assert pipeline.classes.numbers(class_argument(text, ID2LABEL), "class_labels") == [
            class_number(pipeline, text)
        ]


def test_one_embedding_is_no_class(named_dir):
    with pytest.raises(ValueError, match=r"`model\.num_class_embeds` must be at least 2"):
        class_recipe(named_dir, num_class_embeds=1)
