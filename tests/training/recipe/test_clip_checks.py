# SPDX-License-Identifier: Apache-2.0
"""Recipes of clips: what their stages train, which ones are refused with the field's name, and the flags."""

import dataclasses
import re
from pathlib import Path

import pytest

from diffusers_mdm.training.commands.dry_run import describe_run
from diffusers_mdm.training.commands.flags import read_command
from diffusers_mdm.training.commands.run_command import CLASS_CONDITIONAL, TEXT_TO_IMAGE, TEXT_TO_VIDEO
from diffusers_mdm.training.costs.memory_estimate import estimate_stage, fake_unet
from diffusers_mdm.training.modules.text_encoder import count_text_parameters
from diffusers_mdm.training.recipe.clip_stages import data_of, joint_stage, stage_frames
from diffusers_mdm.training.recipe.data import DataRecipe
from diffusers_mdm.training.recipe.loading import load_recipe
from diffusers_mdm.training.recipe.recipe import LoraRecipe, PretrainedRecipe, PriorRecipe, Recipe
from diffusers_mdm.training.recipe.stage import PlateauRecipe
from diffusers_mdm.training.recipe.text_encoder import TextEncoderRecipe
from diffusers_mdm.training.recipe.writing import write_recipe
from diffusers_mdm.training.state.run import RunOptions
from tests.training.tiny_clips import video_recipe
from tests.training.tiny_run import RECIPES, tiny_recipe

OPTIONS = RunOptions(output_dir=Path("out"))


@pytest.fixture(scope="module")
def recipe(clips_dir, images_dir) -> Recipe:
    return video_recipe(clips_dir, images_dir)


def with_stage(recipe: Recipe, position: int, **fields) -> Recipe:
    stages = list(recipe.stages)
    stages[position] = dataclasses.replace(stages[position], **fields)
    return dataclasses.replace(recipe, stages=tuple(stages))


def with_level(recipe: Recipe, position: int, **fields) -> Recipe:
    levels = list(recipe.levels)
    levels[position] = {**levels[position], **fields}
    return dataclasses.replace(recipe, levels=tuple(levels))


def with_data(recipe: Recipe, part: str = "data", **fields) -> Recipe:
    return dataclasses.replace(recipe, **{part: dataclasses.replace(getattr(recipe, part), **fields)})


WRONG = {
    "images after clips": (
        lambda r: with_stage(r, 2, as_images=True, joint_images=0),
        r"stages\[2\].as_images",
    ),
    "levels that shrink": (lambda r: dataclasses.replace(r, stages=r.stages[::-1]), r"stages\[1\].levels"),
    "images beside images": (lambda r: with_stage(r, 0, joint_images=1), r"stages\[0\].joint_images"),
    "no images for a level": (
        lambda r: with_stage(r, 2, joint_images=1),
        r"stages\[2\].joint_images.*no sample of a batch",
    ),
    "fewer than none": (lambda r: with_stage(r, 2, joint_images=-1), "joint_images.*at least 0"),
    "no clips": (lambda r: with_data(r, video_column=None), "data.video_column"),
    "other frames": (lambda r: with_level(r, 1, num_frames=4), r"levels\[1\]\.num_frames` = 4.*expected 8"),
    "no temporal layers": (
        lambda r: with_level(
            with_level(r, 0, temporal_layers_per_block=None, temporal_rotary=False),
            1,
            temporal_layers_per_block=None,
            temporal_rotary=False,
        ),
        r"levels\[0\].temporal_layers_per_block",
    ),
    "frozen while it grows": (
        lambda r: dataclasses.replace(
            r, stages=(r.stages[0], dataclasses.replace(r.stages[2], frozen_levels=1, joint_images=0))
        ),
        r"stages\[1\].frozen_levels",
    ),
    "encoded captions of clips alone": (
        lambda r: with_data(r, "images", embeddings_dir="somewhere"),
        "images.embeddings_dir",
    ),
    "prior": (lambda r: dataclasses.replace(r, prior_preservation=PriorRecipe("x", "y")), "prior_preservation"),
    "no held-out images": (
        lambda r: with_stage(with_data(r, validation_split="train"), 0, until_plateau=PlateauRecipe(every_steps=1)),
        r"stages\[0\].until_plateau",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_recipes_name_the_field(recipe, case):
    change, message = WRONG[case]
    with pytest.raises(ValueError, match=message):
        change(recipe)


def test_recipes_of_an_earlier_version_are_read(tmp_path):
    text = (RECIPES / "tiny_video.yaml").read_text(encoding="utf-8")
    older = re.sub(r"\b(as_|joint_)images\b", r"\1pictures", text).replace("\nimages:", "\npictures:")
    assert older.count("pictures:") > text.count("pictures:") + 2
    (tmp_path / "older.yaml").write_text(older, encoding="utf-8")
    (tmp_path / "newer.yaml").write_text(text, encoding="utf-8")
    assert load_recipe(tmp_path / "older.yaml") == load_recipe(tmp_path / "newer.yaml")


def test_images_do_not_reach_levels_that_resample_frames():
    recipe = load_recipe(RECIPES / "video_256.yaml")
    with pytest.raises(ValueError, match=r"stages\[1\].levels.*level 1 resamples frames.*at most 1"):
        with_stage(recipe, 1, as_images=True, joint_images=0)


def test_adapters_do_not_grow_into_clips(recipe):
    encoder = TextEncoderRecipe(from_pipeline=True)
    with pytest.raises(ValueError, match=r"stages\[0\].as_images.*`lora`"):
        dataclasses.replace(
            recipe,
            stages=recipe.stages[:1],
            lora=LoraRecipe(),
            pretrained=PretrainedRecipe("x"),
            text_encoder=encoder,
        )


def test_recipes_of_images_have_nothing_beside_clips(images_dir):
    tiny = tiny_recipe(images_dir)
    for field, value in (("as_images", True), ("joint_images", 2)):
        with pytest.raises(ValueError, match=rf"stages\[0\].{field}.*num_frames"):
            with_stage(tiny, 0, **{field: value})
    with pytest.raises(ValueError, match="`images` is for training on images together with clips"):
        dataclasses.replace(tiny, images=DataRecipe(path="x"))


def test_stages_take_frames_and_data_from_where_they_should(recipe):
    assert [stage_frames(recipe, stage) for stage in recipe.stages] == [1, 8, 8]
    assert [data_of(recipe, stage) is recipe.images for stage in recipe.stages] == [True, False, False]
    alone = dataclasses.replace(recipe, images=None)
    assert data_of(alone, joint_stage(alone, alone.stages[1])) is alone.data


def test_a_recipe_of_clips_is_read_back_as_it_was_written(recipe, tmp_path):
    assert load_recipe(write_recipe(recipe, tmp_path)) == recipe


def test_the_published_direction_is_nested_in_time_and_in_space():
    recipe = load_recipe(RECIPES / "video_256.yaml")
    unet = fake_unet(recipe, 4)
    assert unet.level_frames == (1, 4, 16, 16)
    assert unet.sample_sizes == (64, 64, 64, 256)
    assert [stage_frames(recipe, stage) for stage in recipe.stages] == [1, 4, 16, 16]
    assert [joint_stage(recipe, stage).levels for stage in recipe.stages[1:]] == [1, 1, 1]


@pytest.mark.slow
def test_the_demo_model_fits_into_seven_megabytes():
    recipe = load_recipe(RECIPES / "emoji_clips_64.yaml")
    described = describe_run(recipe)
    assert "stage pictures-16: levels 0-0, 16 pixels, images" in described
    assert "stage clips-64: levels 0-1, 64 pixels, clips of 8 frames" in described
    assert "16 images through all levels" in described
    memory = estimate_stage(recipe, dataclasses.replace(recipe.stages[2], joint_images=0, batch_size=3), OPTIONS, 0)
    text = count_text_parameters(recipe)
    assert (memory.weights // 4 + text) * 2 < 7e6


def test_clips_take_as_much_memory_as_they_have_frames(recipe):
    clips = dataclasses.replace(recipe.stages[1], joint_images=0, batch_size=2)
    few, many = (
        estimate_stage(recipe, stage, OPTIONS, 0).activations
        for stage in (clips, dataclasses.replace(clips, joint_images=64))
    )
    images = dataclasses.replace(recipe.stages[0], batch_size=2)
    single = estimate_stage(recipe, images, OPTIONS, 0).activations
    assert 5 * single < few
    # The larger one of both passes counts, because they come one after the other.
    assert many > 2 * few


# --- flags ---


def error_of(capsys, kind, *words) -> str:
    with pytest.raises(SystemExit):
        read_command(list(map(str, ("--output_dir", "out", *words))), kind)
    return capsys.readouterr().err


def test_each_command_refuses_the_recipes_of_the_other(capsys):
    tiny, clips = RECIPES / "tiny.yaml", RECIPES / "tiny_video.yaml"
    assert "'tiny' is for an image model: set `num_frames`" in error_of(capsys, TEXT_TO_VIDEO, "--recipe", tiny)
    for kind in (TEXT_TO_IMAGE, CLASS_CONDITIONAL):
        error = error_of(capsys, kind, "--recipe", clips)
        assert "'tiny_video' is for a video model" in error
        assert "train_text_to_video_mdm.py" in error


def test_flags_change_a_recipe_of_clips(capsys, tmp_path):
    words = ["--output_dir", tmp_path, "--recipe", RECIPES / "tiny_video.yaml", "--joint_images", "5"]
    words += ["--video_column", "clip", "--frame_stride", "2"]
    recipe, options, _ = read_command(list(map(str, words)), TEXT_TO_VIDEO)
    assert [stage.joint_images for stage in recipe.stages] == [0, 5, 5]
    assert (recipe.data.video_column, recipe.data.frame_stride) == ("clip", 2)
    assert options.tracker_project_name == "text2video-mdm"
    error = error_of(capsys, TEXT_TO_VIDEO, "--recipe", RECIPES / "tiny_video.yaml", "--num_frames", 4)
    assert "--num_frames is for fine-tuning" in error


def test_pipelines_of_images_get_frames(pipeline_dir, clips_dir, capsys):
    words = ["--pretrained_model_name_or_path", pipeline_dir, "--train_data_dir", clips_dir, "--max_train_steps", 1]
    assert "is for an image model" in error_of(capsys, TEXT_TO_VIDEO, *words)
    # Its channels are too narrow for temporal attention.
    assert "No level would have temporal attention" in error_of(capsys, TEXT_TO_VIDEO, *words, "--num_frames", 8)
