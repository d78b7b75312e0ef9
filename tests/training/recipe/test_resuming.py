# SPDX-License-Identifier: Apache-2.0
"""What a checkpoint fixes of a recipe: each kind of change, before, in and after the stage that has been reached."""

import dataclasses

import pytest

from diffusers_mdm.training.recipe.loading import load_recipe
from diffusers_mdm.training.recipe.optimizer import PostHocEmaRecipe
from diffusers_mdm.training.recipe.recipe import OptimizerRecipe, PretrainedRecipe, Recipe
from diffusers_mdm.training.recipe.resuming import (
    EFFECTS,
    Effect,
    Resumption,
    Saved,
    compare_with_checkpoint,
    effect_of,
)
from diffusers_mdm.training.recipe.stage import StageRecipe
from tests.training.tiny_run import RECIPES

TINY = load_recipe(RECIPES / "tiny.yaml")
INNER, OUTER = TINY.stages


def compare(new: Recipe, old: Recipe = TINY, stage_index: int = 1, seed: int = 0, num_levels: int = 2) -> Resumption:
    saved = Saved("checkpoint-6", dataclasses.asdict(old), stage_index, num_levels, seed=0)
    return compare_with_checkpoint(new, seed, saved)


def with_stages(*stages: StageRecipe) -> Recipe:
    return dataclasses.replace(TINY, stages=stages)


def with_outer(**fields) -> Recipe:
    return with_stages(INNER, dataclasses.replace(OUTER, **fields))


def with_inner(**fields) -> Recipe:
    return with_stages(dataclasses.replace(INNER, **fields), OUTER)


def test_every_field_of_a_recipe_is_in_the_table():
    paths = {"seed"}
    for field in dataclasses.fields(Recipe):
        part = getattr(TINY, field.name)
        inner = StageRecipe if field.name == "stages" else part
        if dataclasses.is_dataclass(inner):
            paths |= {f"{field.name}.{entry.name}" for entry in dataclasses.fields(inner)}
        elif f"{field.name}.*" not in EFFECTS:
            paths.add(field.name)
    absent = {field.name for field in dataclasses.fields(Recipe) if getattr(TINY, field.name) is None}
    assert {path for path in EFFECTS if "*" not in path and path.split(".")[0] not in absent} <= paths
    assert all(isinstance(effect_of(path), Effect) for path in paths)


def test_the_same_recipe_goes_on_without_a_word():
    resumption = compare(TINY)
    assert (resumption.recipe, resumption.changes, list(resumption.lines())) == (TINY, (), [])


INSERTED = dataclasses.replace(INNER, name="between")
WRONG = {
    "inserted stage": (with_stages(INNER, INSERTED, OUTER), r"`stages\[1\]\.name` 'outer' -> 'between'"),
    "narrowed stage": (
        with_outer(levels=1, level_weights=None, batch_fractions=None),
        r"`stages\[1\]\.levels` 2 -> 1",
    ),
    "shortened stages": (with_stages(INNER), r"`stages\[1\]` 'outer' -> None"),
    "stage of another seed": (with_outer(seed=3), r"`stages\[1\]\.seed` 0 -> 3"),
    "frozen levels": (with_outer(frozen_levels=1), r"`stages\[1\]\.frozen_levels` 0 -> 1"),
    "scheduler": (dataclasses.replace(TINY, scheduler={"shift_power": 2.0}), r"`scheduler\.shift_power` 1.0 -> 2.0"),
    "other averages": (
        dataclasses.replace(TINY, post_hoc_ema=PostHocEmaRecipe()),
        "`post_hoc_ema` None -> PostHocEmaRecipe",
    ),
    "optimizer": (
        dataclasses.replace(TINY, optimizer=OptimizerRecipe(name="muon")),
        "`optimizer.name` 'adamw' -> 'muon'",
    ),
    "averages": (dataclasses.replace(TINY, use_ema=False), "`use_ema` True -> False"),
    "pretrained": (dataclasses.replace(TINY, pretrained=PretrainedRecipe("a/b")), "`pretrained` None -> "),
    "level": (
        dataclasses.replace(TINY, levels=(TINY.levels[0], {**TINY.levels[1], "dropout": 0.5})),
        r"`levels\[1\]\.dropout` 0.0 -> 0.5",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_the_checkpoint_fixes_is_an_error_with_both_values(case):
    recipe, words = WRONG[case]
    with pytest.raises(ValueError, match=words) as caught:
        compare(recipe)
    assert str(caught.value).startswith("checkpoint-6 cannot be resumed with these changes")
    assert "--output_dir" in str(caught.value)
    assert "--resume_from_checkpoint none" in str(caught.value)


def test_another_seed_of_the_command_is_an_error_where_it_is_known():
    with pytest.raises(ValueError, match="`seed` 0 -> 7"):
        compare(TINY, seed=7)
    older = Saved("checkpoint-6", dataclasses.asdict(TINY), 1, 2)
    assert compare_with_checkpoint(TINY, 7, older).changes == ()


def test_what_may_change_is_said_and_counts_from_here_on():
    new = dataclasses.replace(with_outer(learning_rate=1e-5, steps=9), optimizer=OptimizerRecipe(adam_beta1=0.8))
    resumption = compare(new)
    assert resumption.recipe == new
    (line,) = resumption.lines()
    assert line.startswith("Changed from here on: ")
    for words in ("`stages[1].learning_rate` 0.001 -> 1e-05", "`stages[1].steps` 4 -> 9", "`optimizer.adam_beta1`"):
        assert words in line


def test_data_of_another_kind_may_take_the_place():
    new = dataclasses.replace(TINY, data=TINY.data.with_fields(shards=("a.tar",)))
    assert [(change.field, change.effect) for change in compare(new).changes] == [("data", Effect.MAY_CHANGE)]


def test_what_is_over_stays_as_it_was():
    resumption = compare(dataclasses.replace(with_inner(steps=99, seed=5), zero_init=not TINY.zero_init))
    assert resumption.recipe == TINY
    (line,) = resumption.lines()
    assert line.startswith("Changed without effect")
    assert "`stages[0].steps`" in line
    assert "`zero_init`" in line


def test_stages_and_levels_to_come_are_free():
    assert compare(with_outer(seed=4, name="other"), stage_index=0, num_levels=1).recipe.stages[1].seed == 4
    assert compare(with_stages(INNER), stage_index=0, num_levels=1).recipe.stages == (INNER,)
    wider = dataclasses.replace(TINY, levels=(TINY.levels[0], {**TINY.levels[1], "dropout": 0.5}))
    assert [change.effect for change in compare(wider, stage_index=0, num_levels=1).changes] == [Effect.MAY_CHANGE]


def test_what_an_older_version_did_not_know_has_its_default():
    old = dataclasses.asdict(TINY)
    del old["vae"], old["images"], old["data"]["video_column"], old["stages"][0]["joint_images"]
    assert compare_with_checkpoint(TINY, 0, Saved("checkpoint-6", old, 1, 2)).changes == ()
    spelled = dataclasses.replace(TINY, scheduler={**TINY.scheduler, "shift_power": 1.0})
    assert compare(spelled).changes == ()


def test_a_newer_versions_recipe_is_refused_by_name():
    newer = {**dataclasses.asdict(TINY), "novelty": 1}
    with pytest.raises(ValueError, match=r"checkpoint-6 has a recipe.*`novelty`"):
        compare_with_checkpoint(TINY, 0, Saved("checkpoint-6", newer, 1, 2))


def test_a_folder_that_has_moved_is_the_same_folder(tmp_path):
    there = dataclasses.replace(TINY, pretrained=PretrainedRecipe("models/base"))
    moved = dataclasses.replace(TINY, pretrained=PretrainedRecipe(str(tmp_path / "base")))
    assert compare(moved, old=there).changes == ()
    for other in (str(tmp_path / "another"), "someone/base"):
        with pytest.raises(ValueError, match=r"`pretrained\.path`"):
            compare(dataclasses.replace(TINY, pretrained=PretrainedRecipe(other)), old=there)
