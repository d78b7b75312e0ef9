# SPDX-License-Identifier: Apache-2.0
"""From the command line to a recipe and run options. A flag that is not given changes nothing in a recipe."""

import argparse
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ...processes import num_launched
from ..recipe.clip_stages import trains_on_images
from ..recipe.data import DataRecipe
from ..recipe.loading import find_recipe, load_recipe, without_unseen_captions
from ..recipe.optimizer import PostHocEmaRecipe
from ..recipe.pretrained import VaeRecipe
from ..recipe.recipe import LoraRecipe, PretrainedRecipe, PriorRecipe, Recipe
from ..recipe.stage import AlignmentRecipe, PerceptualRecipe, PlateauRecipe, StageRecipe
from ..recipe.text_encoder import TextEncoderRecipe
from ..state.run import RunOptions
from .fine_tuning import (
    BATCH_SIZE,
    LEARNING_RATE,
    LORA_LEARNING_RATE,
    PRODIGY_LEARNING_RATE,
    SUBJECT_BATCH_SIZE,
    SUBJECT_LEARNING_RATE,
    count_images,
    image_sides,
    inner_levels,
    recipe_for_pipeline,
    steps_for_passes,
)
from .flag_table import FLAGS, fields_of
from .kinds import TEXT_TO_IMAGE, CommandKind
from .parser import parse_command

EMBEDDINGS_FOLDER = "text_embeddings"  # folder inside the output folder for --pre_compute_text_embeddings


def read_command(argv: Sequence[str], kind: CommandKind = TEXT_TO_IMAGE) -> tuple[Recipe, RunOptions, bool]:
    """Parse a command line; mistakes end the program with one line that says what to do.

    Args:
        argv: the arguments of the command line.
        kind: the training command.

    Returns:
        The recipe with the changes made by flags, the run options, and whether this is a dry run.
    """
    parser, given = parse_command(argv, kind)
    return recipe_and_options(parser, given, kind)


def recipe_and_options(
    parser: argparse.ArgumentParser, given: Mapping[str, Any], kind: CommandKind
) -> tuple[Recipe, RunOptions, bool]:
    """Return the same as `read_command`, from the flags of `parse_command`."""
    try:
        recipe, changes = base_recipe(given)
        kind.check(recipe)
        recipe = override(recipe, changes)
        options = run_options(recipe, given)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    return recipe, options, given.get("dry_run", False)


def base_recipe(given: Mapping[str, Any]) -> tuple[Recipe, dict[str, Any]]:
    """Return the recipe before flags change it (from the file, or for fine-tuning), and the flags with their
    defaults.
    """
    if "recipe" in given:
        return load_recipe(find_recipe(given["recipe"])), dict(given)
    has_subject, has_lora = "instance_data_dir" in given, "rank" in given
    rate = SUBJECT_LEARNING_RATE if has_subject else LEARNING_RATE
    rate = LORA_LEARNING_RATE if has_lora else rate
    defaults = {
        "train_batch_size": SUBJECT_BATCH_SIZE if has_subject else BATCH_SIZE,
        "learning_rate": PRODIGY_LEARNING_RATE if given.get("optimizer") == "prodigy" else rate,
        "center_crop": False,
        # The prompt is the name of the subject, so dropping it would leave nothing to learn.
        **({"proportion_empty_prompts": 0.0} if has_subject else {}),
        **({} if "max_train_steps" in given else {"num_train_epochs": 1 if has_subject else 100}),
    }
    given = {**defaults, **given}
    recipe = recipe_for_pipeline(
        PretrainedRecipe(**fields_of("pretrained", given)),
        DataRecipe(**fields_of("data", given)),
        steps=given.get("max_train_steps", 1),
        train_levels=given.get("train_levels"),
        resolution=given.get("resolution"),
        cache_dir=given.get("cache_dir"),
        num_frames=given.get("num_frames"),
    )
    return recipe, given


def override(recipe: Recipe, given: Mapping[str, Any]) -> Recipe:
    """Override the fields of `recipe` that flags set; a field of a stage is changed in every stage.

    Raises:
        ValueError: the result is invalid; the message names the field.
    """
    changes: dict[str, Any] = fields_of("recipe", given)
    if recipe.text_encoder is None and (fields := fields_of("text_encoder", given)):
        raise ValueError(f"--{_flag_of(TextEncoderRecipe, next(iter(fields)))} needs a model that takes text.")
    for part in ("text_encoder", "optimizer", "validation"):
        fields = fields_of(part, given)
        if fields:
            changes[part] = dataclasses.replace(getattr(recipe, part), **fields)
    metric, validation = given.get("early_stopping_metric", "loss"), changes.get("validation", recipe.validation)
    if metric != "loss" and metric not in validation.metrics:
        changes["validation"] = dataclasses.replace(validation, metrics=(*validation.metrics, metric))
    if kinds := given.get("prediction_type"):
        changes["scheduler"] = {**recipe.scheduler, "prediction_type": kinds[0] if len(kinds) == 1 else list(kinds)}
    changes["data"] = override_data(recipe.data, given)
    if recipe.images is not None and changes["data"].embeddings_dir != recipe.data.embeddings_dir:
        folder = changes["data"].embeddings_dir  # contains the captions of both
        changes["images"] = dataclasses.replace(recipe.images, embeddings_dir=folder)
    changes["pretrained"] = _optional(
        recipe.pretrained, PretrainedRecipe, "path", fields_of("pretrained", given), "--pretrained_model_name_or_path"
    )
    if fields := fields_of("vae", given):
        changes["vae"] = VaeRecipe(**fields)
    for part, cls, key in (("alignment", AlignmentRecipe, "encoder"), ("perceptual", PerceptualRecipe, "network")):
        changes[part] = _optional(getattr(recipe, part), cls, key, fields_of(part, given), f"--{part}_{key}")
    changes["lora"] = _optional(recipe.lora, LoraRecipe, "rank", fields_of("lora", given), "--rank")
    changes["post_hoc_ema"] = override_post_hoc_ema(recipe.post_hoc_ema, given)
    changes["prior_preservation"] = override_prior(recipe.prior_preservation, given)
    # Together with the stages, whose learning rates have to fit it.
    optimizer = changes.pop("optimizer", recipe.optimizer)
    recipe = without_unseen_captions(dataclasses.replace(recipe, **changes))
    recipe = dataclasses.replace(recipe, optimizer=optimizer, stages=override_stages(recipe, given))
    return _with_text_rate(recipe, given)


def _optional(current: Any, cls: type, key: str, fields: dict[str, Any], flag: str) -> Any:
    """Override an optional part of a recipe; if the recipe lacks it, create it when its main flag is given."""
    if not fields:
        return current
    if current is None and key not in fields:
        raise ValueError(f"--{_flag_of(cls, next(iter(fields)))} needs {flag}.")
    return cls(**fields) if current is None else dataclasses.replace(current, **fields)


def _flag_of(cls: type, field: str) -> str:
    parts = {
        PretrainedRecipe: "pretrained",
        LoraRecipe: "lora",
        PriorRecipe: "prior_preservation",
        TextEncoderRecipe: "text_encoder",
        AlignmentRecipe: "alignment",
        PerceptualRecipe: "perceptual",
    }
    return next(name for name, flag in FLAGS.items() if flag.field == f"{parts[cls]}.{field}")


def override_data(data: DataRecipe, given: Mapping[str, Any]) -> DataRecipe:
    """Override the data of a recipe; another source replaces it."""
    fields = fields_of("data", given)
    if "path" in fields and data.label_column is None:  # images with classes need no captions
        fields.setdefault("caption", None)
    if given.get("pre_compute_text_embeddings"):
        if "embeddings_dir" in fields:
            raise ValueError("--pre_compute_text_embeddings writes what --embeddings_dir reads; pass one of them.")
        if given.get("train_text_encoder"):
            raise ValueError(
                "--pre_compute_text_embeddings encodes all captions once, but --train_text_encoder "
                "changes the encoder; drop one."
            )
        fields["embeddings_dir"] = str(given["output_dir"] / EMBEDDINGS_FOLDER)
    return data.with_fields(**fields)


def override_post_hoc_ema(current: PostHocEmaRecipe | None, given: Mapping[str, Any]) -> PostHocEmaRecipe | None:
    """Turn averages whose width is chosen later on or off, or change their settings."""
    fields = fields_of("post_hoc_ema", given)
    if given.get("post_hoc_ema", current is not None):
        return dataclasses.replace(current or PostHocEmaRecipe(), **fields)
    if fields:
        raise ValueError(f"--post_hoc_ema_{next(iter(fields))} needs --post_hoc_ema.")
    return None


def override_prior(current: PriorRecipe | None, given: Mapping[str, Any]) -> PriorRecipe | None:
    """Turn prior preservation on or off, or change its settings."""
    fields = fields_of("prior_preservation", given)
    if fields.get("precision") == "no":
        fields["precision"] = "fp32"
    wanted = given.get("with_prior_preservation", current is not None)
    if not wanted:
        if fields:
            raise ValueError(f"--{_flag_of(PriorRecipe, next(iter(fields)))} needs --with_prior_preservation.")
        return None
    if current is not None:
        return dataclasses.replace(current, **fields)
    missing = [name for name in ("class_data_dir", "class_prompt") if name not in fields]
    if missing:
        raise ValueError(f"--with_prior_preservation needs --{' and --'.join(missing)}.")
    return PriorRecipe(**fields)


def override_stages(recipe: Recipe, given: Mapping[str, Any]) -> tuple[StageRecipe, ...]:
    """Return the stages up to the requested level, each with the changes made by flags."""
    sides = recipe.sides
    if "resolution" in given:  # in pixels of images, which are larger than the levels if there is an autoencoder
        sides = image_sides(recipe, given.get("cache_dir"))
    most = inner_levels(sides, given.get("train_levels"), given.get("resolution"))
    stages = tuple(stage for stage in recipe.stages if stage.levels <= most)
    if not stages:
        raise ValueError(
            f"No stage of the recipe trains {most} level(s) or fewer: they train "
            f"{', '.join(str(stage.levels) for stage in recipe.stages)}."
        )
    fields = fields_of("stages", given)
    if "batch_size" in fields and recipe.prior_preservation is not None:
        fields["batch_size"] *= 2  # as many images of the class as of the subject
    if "num_train_epochs" in given and "max_train_steps" not in given:
        passes = given["num_train_epochs"] * (1 if recipe.prior_preservation is None else 2)
        fields |= {"images": passes * count_images(recipe.data, "--num_train_epochs"), "steps": None}
    outermost = max(stage.levels for stage in stages)
    joint = {"joint_images": fields.pop("joint_images")} if "joint_images" in fields else {}
    if joint and all(trains_on_images(recipe, stage) for stage in stages):
        raise ValueError("--joint_images adds images to batches of clips, but no stage trains on clips; omit it.")
    changed = tuple(
        dataclasses.replace(
            stage,
            **_cut(fields, stage.levels, outermost),
            **({} if trains_on_images(recipe, stage) else joint),
            **early_stopping(stage, given),
        )
        for stage in stages
    )
    if not given.get("scale_lr"):
        return changed
    return tuple(
        dataclasses.replace(stage, learning_rate=stage.learning_rate * stage.images_per_step * num_launched())
        for stage in changed
    )


def early_stopping(stage: StageRecipe, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the `until_plateau` of a stage that the flags for early stopping change; empty without such flags.

    If the stage has none, a value is measured at every validation step, and is not smoothed.
    """
    names = {"metric": "metric", "patience": "patience", "threshold": "min_gain"}
    flags = {field: f"early_stopping_{name}" for name, field in names.items()}
    fields = {field: given[flag] for field, flag in flags.items() if flag in given}
    if not fields:
        return {}
    every = given.get("validation_steps") or given.get("checkpointing_steps") or RunOptions.checkpointing_steps
    new = PlateauRecipe(every_steps=every, min_gain=0.0, smoothing=0.0)
    return {"until_plateau": dataclasses.replace(stage.until_plateau or new, **fields)}


def _cut(fields: Mapping[str, Any], levels: int, outermost: int) -> dict[str, Any]:
    """Return the fields for a stage of `levels` levels, with lists that have one entry per level cut to these."""
    for name, value in fields.items():
        if isinstance(value, tuple) and len(value) != outermost:
            raise ValueError(f"--{name} needs {outermost} entries, one per level, got {len(value)}.")
    return {name: value[:levels] if isinstance(value, tuple) else value for name, value in fields.items()}


def _with_text_rate(recipe: Recipe, given: Mapping[str, Any]) -> Recipe:
    if "text_encoder_lr" not in given:
        return recipe
    if recipe.text_encoder is None or not recipe.text_encoder.train_text_encoder:
        raise ValueError("--text_encoder_lr needs --train_text_encoder.")
    rate = _only("--text_encoder_lr", (stage.learning_rate for stage in recipe.stages), "learning rate")
    scaled = dataclasses.replace(recipe.text_encoder, learning_rate_scale=given["text_encoder_lr"] / rate)
    return dataclasses.replace(recipe, text_encoder=scaled)


def _only(flag: str, values: Iterable[float], what: str) -> float:
    """Return the value that all stages share."""
    distinct = set(values)
    if len(distinct) != 1:
        raise ValueError(
            f"{flag} needs stages with the same {what}, but the recipe's differ; change the recipe itself."
        )
    return distinct.pop()


def run_options(recipe: Recipe, given: Mapping[str, Any]) -> RunOptions:
    """Return the run options from the flags and the recipe.

    Raises:
        ValueError: an option does not fit the recipe.
    """
    fields = fields_of("options", given)
    levels = fields.get("gradient_checkpointing_levels") or ()
    if unknown := [level for level in levels if level >= len(recipe.levels)]:
        raise ValueError(
            f"--gradient_checkpointing_levels names level {unknown[0]}; the levels of this recipe are 0 to "
            f"{len(recipe.levels) - 1}, innermost first."
        )
    for flag, field in (("validation_epochs", "validation_steps"), ("save_model_epochs", "checkpointing_steps")):
        if flag in given:
            fields[field] = _steps_of_epochs(recipe, f"--{flag}", given[flag])
    return RunOptions(**fields)


def _steps_of_epochs(recipe: Recipe, flag: str, passes: int) -> int:
    """Return the optimizer steps for the passes over the data that a flag names."""
    per_step = _only(flag, (stage.images_per_step for stage in recipe.stages), "batch size")
    images = count_images(recipe.data, flag) * (1 if recipe.prior_preservation is None else 2)
    return steps_for_passes(passes, images, int(per_step) * num_launched())
