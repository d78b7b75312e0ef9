# SPDX-License-Identifier: Apache-2.0
"""From the command line to a recipe and options. A flag that is left out changes nothing in a recipe."""

import argparse
import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NoReturn

from ..processes import num_launched
from ..recipe.clips import check_draws_pictures, trains_on_pictures
from ..recipe.data import DataRecipe
from ..recipe.loading import load_recipe
from ..recipe.recipe import LoraRecipe, PretrainedRecipe, PriorRecipe, Recipe
from ..recipe.stage import StageRecipe
from ..recipe.text_encoder import TextEncoderRecipe
from ..recipe.vae import VaeRecipe
from ..state.run import RunOptions
from .fine_tuning import (
    BATCH_SIZE,
    LEARNING_RATE,
    LORA_LEARNING_RATE,
    SUBJECT_BATCH_SIZE,
    SUBJECT_LEARNING_RATE,
    count_pictures,
    inner_levels,
    level_sides,
    picture_sides,
    recipe_for_pipeline,
    steps_for_passes,
)
from .flag_table import FLAGS, GROUPS, Flag, fields_of
from .inapplicable_flags import ALWAYS_SO, REASONS
from .messages import one_line

USAGE = """
  %(prog)s --recipe FILE --output_dir FOLDER [flags]
  %(prog)s --pretrained_model_name_or_path MODEL --train_data_dir FOLDER --output_dir FOLDER [flags]
  %(prog)s --help"""
_DESCRIPTION = """\
Train a Matryoshka diffusion model from captioned pictures, stage by stage from the inside out (--recipe), or
fine-tune a saved pipeline (--pretrained_model_name_or_path): wholly, with LoRA (--rank), or on one subject
(--instance_data_dir). Repeating the command resumes from its newest checkpoint. Flags have the names and meanings of
diffusers' training scripts; switches can also be given as --no-<name>.
"""
EMBEDDINGS_FOLDER = "text_embeddings"  # in the output folder, of --pre_compute_text_embeddings
_SOURCES = ("dataset_name", "train_data_dir", "shards", "instance_data_dir")
_ELSEWHERE = ("local_rank", "prediction_type", *ALWAYS_SO)  # accepted, without anything to set


@dataclasses.dataclass(frozen=True)
class CommandKind:
    """What sets a training command apart from the others.

    Attributes:
        description: what its `--help` begins with.
        check: raises a ValueError where a recipe is none for this command.
        defaults: flags that are as if given, unless they are.
        fine_tuning_defaults: the same where there is no recipe.
    """

    description: str
    check: Callable[[Recipe], None] = lambda recipe: None
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    fine_tuning_defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)


TEXT_TO_IMAGE = CommandKind(_DESCRIPTION, check=check_draws_pictures)


class OneLineParser(argparse.ArgumentParser):
    """Says what is wrong in one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        """End the program."""
        self.exit(2, f"{self.prog}: error: {one_line(message)}\n")


class _Inapplicable(argparse.Action):
    """A flag whose use is an error with a reason."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: Any, values: Any, option: Any = None) -> NoReturn:
        parser.error(f"{option} does not apply: {REASONS[self.dest]}.")


def build_parser(description: str = _DESCRIPTION) -> argparse.ArgumentParser:
    """The command's flags; those that are not given are absent from the result."""
    parser = OneLineParser(
        usage=USAGE,
        description=description,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for title, flags in GROUPS.items():
        group = parser.add_argument_group(title)
        for flag in flags:
            add_flag(group, flag)
    always = parser.add_argument_group("always so", "accepted, and so in every run")
    always.add_argument(
        "--prediction_type", choices=["v_prediction"], help="the model predicts v at every level; it cannot be changed"
    )
    for name, text in ALWAYS_SO.items():
        always.add_argument(f"--{name}", action="store_true", help=text)
    parser.add_argument("--local_rank", help=argparse.SUPPRESS)  # of launchers
    foreign = parser.add_argument_group("do not apply", "flags of diffusers' scripts that are errors here, and why")
    for name, reason in REASONS.items():
        foreign.add_argument(f"--{name}", action=_Inapplicable, nargs="*", metavar="X", help=reason)
    return parser


def add_flag(group: argparse._ArgumentGroup, flag: Flag) -> None:
    """Let a parser know a flag; `output_dir` has to be given."""
    if flag.convert is None:
        group.add_argument(f"--{flag.name}", action=argparse.BooleanOptionalAction, help=flag.help)
        return
    group.add_argument(
        f"--{flag.name}",
        type=flag.convert,
        help=flag.help,
        choices=flag.choices,
        nargs="+" if flag.is_list else None,
        metavar=None if flag.choices else "X",
        required=flag.name == "output_dir",
    )


def read_command(argv: Sequence[str], kind: CommandKind = TEXT_TO_IMAGE) -> tuple[Recipe, RunOptions, bool]:
    """Read a command line; mistakes end the program with one line that says what to do.

    Args:
        argv: its words.
        kind: which command it is.

    Returns:
        the recipe with the flags' changes, the options of the run, and whether it is only to be described.
    """
    parser = build_parser(kind.description)
    given = given_flags(parser, argv)
    given = {**kind.defaults, **({} if "recipe" in given else kind.fine_tuning_defaults), **given}
    try:
        check_together(given)
        recipe, changes = base_recipe(given)
        kind.check(recipe)
        recipe = override(recipe, changes)
        options = run_options(recipe, given)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    return recipe, options, given.get("dry_run", False)


def given_flags(parser: argparse.ArgumentParser, argv: Sequence[str]) -> dict[str, Any]:
    """The flags that are given, by name, without those that set nothing."""
    given = {name: value for name, value in vars(parser.parse_args(argv)).items() if name not in _ELSEWHERE}
    return {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}


def check_together(given: Mapping[str, Any]) -> None:
    """Refuse flags that contradict each other or miss their partner.

    Raises:
        ValueError: naming them.
    """
    sources = [name for name in _SOURCES if name in given]
    if len(sources) > 1:
        raise ValueError(f"--{' and --'.join(sources)} each name the training data; give one of them.")
    if ("instance_data_dir" in given) != ("instance_prompt" in given):
        raise ValueError("--instance_data_dir and --instance_prompt belong together: give both, or neither.")
    if "validation_prompt" in given and "validation_prompts" in given:
        raise ValueError("--validation_prompt and --validation_prompts say the same; give one of them.")
    if "validation_steps" in given and "validation_epochs" in given:
        raise ValueError("--validation_steps and --validation_epochs say the same; give one of them.")
    if "recipe" in given:
        if "num_frames" in given:
            raise ValueError("--num_frames is for fine-tuning; a recipe has `num_frames` in each row of its `levels`.")
        return
    if "pretrained_model_name_or_path" not in given:
        raise ValueError(
            "Say what to train: --pretrained_model_name_or_path a saved pipeline to fine-tune, or --recipe a file "
            "(training/recipes) to train a model from scratch."
        )
    if not sources:
        raise ValueError(f"Say what to train on: one of --{', --'.join(_SOURCES)}.")


def base_recipe(given: Mapping[str, Any]) -> tuple[Recipe, dict[str, Any]]:
    """The recipe that flags then change, and these flags: the file's, or that of fine-tuning with its own defaults."""
    if "recipe" in given:
        return load_recipe(given["recipe"]), dict(given)
    has_subject, has_lora = "instance_data_dir" in given, "rank" in given
    rate = SUBJECT_LEARNING_RATE if has_subject else LEARNING_RATE
    defaults = {
        "train_batch_size": SUBJECT_BATCH_SIZE if has_subject else BATCH_SIZE,
        "learning_rate": LORA_LEARNING_RATE if has_lora else rate,
        "center_crop": False,
        # The prompt that names the subject is all there is to learn.
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
    """Change the fields of `recipe` that flags name; a field of a stage changes in every stage.

    Raises:
        ValueError: the result is impossible; the message names the field.
    """
    changes: dict[str, Any] = fields_of("recipe", given)
    if recipe.text_encoder is None and (fields := fields_of("text_encoder", given)):
        raise ValueError(f"--{_flag_of(TextEncoderRecipe, next(iter(fields)))} needs a model that takes text.")
    for part in ("text_encoder", "optimizer", "validation"):
        fields = fields_of(part, given)
        if fields:
            changes[part] = dataclasses.replace(getattr(recipe, part), **fields)
    changes["data"] = override_data(recipe.data, given)
    if recipe.pictures is not None and changes["data"].embeddings_dir != recipe.data.embeddings_dir:
        folder = changes["data"].embeddings_dir  # holds the captions of both
        changes["pictures"] = dataclasses.replace(recipe.pictures, embeddings_dir=folder)
    changes["pretrained"] = _optional(
        recipe.pretrained, PretrainedRecipe, "path", fields_of("pretrained", given), "--pretrained_model_name_or_path"
    )
    if fields := fields_of("vae", given):
        changes["vae"] = VaeRecipe(**fields)
    changes["lora"] = _optional(recipe.lora, LoraRecipe, "rank", fields_of("lora", given), "--rank")
    changes["prior_preservation"] = override_prior(recipe.prior_preservation, given)
    recipe = dataclasses.replace(recipe, **changes)
    recipe = dataclasses.replace(recipe, stages=override_stages(recipe, given))
    return _with_text_rate(recipe, given)


def _optional(current: Any, cls: type, key: str, fields: dict[str, Any], flag: str) -> Any:
    """A part that a recipe may lack: changed where it is there, made where its most important flag is given."""
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
    }
    return next(name for name, flag in FLAGS.items() if flag.field == f"{parts[cls]}.{field}")


def override_data(data: DataRecipe, given: Mapping[str, Any]) -> DataRecipe:
    """Where the pictures come from; another source takes the place of the recipe's."""
    fields = fields_of("data", given)
    if "path" in fields:
        fields["shards"] = None
        if data.label_column is None:  # pictures with classes need no captions
            fields.setdefault("caption", None)
    elif "shards" in fields:
        fields["path"] = None
    if given.get("pre_compute_text_embeddings"):
        if "embeddings_dir" in fields:
            raise ValueError("--pre_compute_text_embeddings writes what --embeddings_dir reads; give one of them.")
        if given.get("train_text_encoder"):
            raise ValueError("--pre_compute_text_embeddings encodes once, --train_text_encoder changes; drop one.")
        fields["embeddings_dir"] = str(given["output_dir"] / EMBEDDINGS_FOLDER)
    return dataclasses.replace(data, **fields)


def override_prior(current: PriorRecipe | None, given: Mapping[str, Any]) -> PriorRecipe | None:
    """Prior preservation, switched on or off, or changed."""
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
    """The stages up to the wanted level, each with the flags' changes."""
    sides = level_sides(recipe.sample_size, recipe.rows)
    if "resolution" in given:  # of pictures, which an autoencoder makes larger than the levels
        sides = picture_sides(recipe, given.get("cache_dir"))
    most = inner_levels(sides, given.get("train_levels"), given.get("resolution"))
    stages = tuple(stage for stage in recipe.stages if stage.levels <= most)
    if not stages:
        raise ValueError(
            f"No stage of the recipe trains {most} level(s) or fewer: they train "
            f"{', '.join(str(stage.levels) for stage in recipe.stages)}."
        )
    fields = fields_of("stages", given)
    if "batch_size" in fields and recipe.prior_preservation is not None:
        fields["batch_size"] *= 2  # as many pictures of the class as of the subject
    if "num_train_epochs" in given and "max_train_steps" not in given:
        passes = given["num_train_epochs"] * (1 if recipe.prior_preservation is None else 2)
        fields |= {"images": passes * count_pictures(recipe.data, "--num_train_epochs"), "steps": None}
    outermost = max(stage.levels for stage in stages)
    joint = {"joint_pictures": fields.pop("joint_pictures")} if "joint_pictures" in fields else {}
    if joint and all(trains_on_pictures(recipe, stage) for stage in stages):
        raise ValueError("--joint_pictures stand beside clips, but no stage trains on clips; leave it out.")
    changed = tuple(
        dataclasses.replace(
            stage,
            **_cut(fields, stage.levels, outermost),
            **({} if trains_on_pictures(recipe, stage) else joint),
        )
        for stage in stages
    )
    if not given.get("scale_lr"):
        return changed
    return tuple(
        dataclasses.replace(stage, learning_rate=stage.learning_rate * stage.images_per_step * num_launched())
        for stage in changed
    )


def _cut(fields: Mapping[str, Any], levels: int, outermost: int) -> dict[str, Any]:
    """The fields for a stage of `levels` levels: of lists with an entry a level the inner ones."""
    for name, value in fields.items():
        if isinstance(value, tuple) and len(value) != outermost:
            raise ValueError(f"--{name} needs {outermost} entries, one a level, got {len(value)}.")
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
    """The one value that all stages share."""
    distinct = set(values)
    if len(distinct) != 1:
        raise ValueError(f"{flag} needs stages of one {what}, but the recipe's differ; change the recipe itself.")
    return distinct.pop()


def run_options(recipe: Recipe, given: Mapping[str, Any]) -> RunOptions:
    """Where and how to run, with what follows from the recipe."""
    fields = fields_of("options", given)
    if "validation_epochs" in given:
        per_step = _only("--validation_epochs", (stage.images_per_step for stage in recipe.stages), "batch size")
        pictures = count_pictures(recipe.data, "--validation_epochs")
        pictures *= 1 if recipe.prior_preservation is None else 2
        fields["validation_steps"] = steps_for_passes(
            given["validation_epochs"], pictures, int(per_step) * num_launched()
        )
    return RunOptions(**fields)
