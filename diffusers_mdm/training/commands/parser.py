# SPDX-License-Identifier: Apache-2.0
"""Parsing of the command line. Imports nothing slow, so that `--help` and typing mistakes are answered at once."""

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from ...command_parsing import command_parser
from .flag_table import ALIASES, FLAGS, GROUPS
from .flag_values import Flag
from .inapplicable_flags import ALWAYS_SO, REASONS
from .kinds import TEXT_TO_IMAGE, CommandKind

USAGE = """
  %(prog)s --recipe FILE --output_dir FOLDER [flags]
  %(prog)s --pretrained_model_name_or_path MODEL --train_data_dir FOLDER --output_dir FOLDER [flags]
  %(prog)s --help"""
_SOURCES = ("dataset_name", "train_data_dir", "shards", "instance_data_dir")
_ELSEWHERE = ("local_rank", *ALWAYS_SO)  # accepted, but they set nothing


class _Inapplicable(argparse.Action):
    """A flag that is an error to use, with the reason."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: Any, values: Any, option: Any = None) -> NoReturn:
        parser.error(f"{option} does not apply: {REASONS[self.dest]}.")


def build_parser(description: str = TEXT_TO_IMAGE.description, program: str | None = None) -> argparse.ArgumentParser:
    """Return the parser of a training command; flags that are not given are absent from its result.

    Args:
        description: the beginning of its `--help`.
        program: its name in messages; by default that of the script.
    """
    parser = command_parser(program, description, usage=USAGE, argument_default=argparse.SUPPRESS)
    for title, flags in GROUPS.items():
        group = parser.add_argument_group(title)
        for flag in flags:
            add_flag(group, flag)
    names = parser.add_argument_group("other names", "names of flags in diffusers' train_unconditional.py")
    for name, known in ALIASES.items():
        add_flag(names, dataclasses.replace(FLAGS[known], name=name, help=f"the same as --{known}"))
    always = parser.add_argument_group("always so", "accepted; always the case")
    for name, text in ALWAYS_SO.items():
        always.add_argument(f"--{name}", action="store_true", help=text)
    parser.add_argument("--local_rank", help=argparse.SUPPRESS)  # set by launchers
    foreign = parser.add_argument_group(
        "do not apply", "flags of diffusers' scripts that are not supported here, and why"
    )
    for name, reason in REASONS.items():
        foreign.add_argument(f"--{name}", action=_Inapplicable, nargs="*", metavar="...", help=reason)
    return parser


def add_flag(group: argparse._ArgumentGroup, flag: Flag) -> None:
    """Add a flag to a parser; `output_dir` is required."""
    if flag.convert is None:
        group.add_argument(f"--{flag.name}", action=argparse.BooleanOptionalAction, help=flag.help)
        return
    group.add_argument(
        f"--{flag.name}",
        type=flag.convert,
        help=flag.help,
        choices=flag.choices,
        nargs="+" if flag.is_list else None,
        metavar=None if flag.choices else metavar(flag),
        required=flag.name == "output_dir",
    )
    if flag.older_name is not None:
        group.add_argument(f"--{flag.older_name}", dest=flag.name, type=flag.convert, help=argparse.SUPPRESS)


def parse_command(
    argv: Sequence[str], kind: CommandKind = TEXT_TO_IMAGE, program: str | None = None
) -> tuple[argparse.ArgumentParser, dict[str, Any]]:
    """Parse the arguments of a training command; mistakes end the program with one line that says what to do.

    Args:
        argv: the arguments of the command line.
        kind: the training command.
        program: its name in messages; by default that of the script.

    Returns:
        The parser, for errors that are found later, and the flags by name, with the defaults of the command.
    """
    parser = build_parser(kind.description, program)
    given = given_flags(parser, argv)
    given = {**kind.defaults, **({} if "recipe" in given else kind.fine_tuning_defaults), **given}
    try:
        check_together(given)
    except ValueError as error:
        parser.error(str(error))
    return parser, given


def given_flags(parser: argparse.ArgumentParser, argv: Sequence[str]) -> dict[str, Any]:
    """Return the flags that are given, by name, without those that set nothing."""
    given = {name: value for name, value in vars(parser.parse_args(argv)).items() if name not in _ELSEWHERE}
    for name in given.keys() & ALIASES.keys():
        if ALIASES[name] in given:
            parser.error(f"--{name} and --{ALIASES[name]} mean the same; pass one of them.")
        given[ALIASES[name]] = given.pop(name)
    return {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}


def check_together(given: Mapping[str, Any]) -> None:
    """Refuse flags that contradict each other or that need another flag.

    Raises:
        ValueError: names the flags.
    """
    sources = [name for name in _SOURCES if name in given]
    if len(sources) > 1:
        raise ValueError(f"--{' and --'.join(sources)} each name the training data; pass one of them.")
    if ("instance_data_dir" in given) != ("instance_prompt" in given):
        raise ValueError("--instance_data_dir and --instance_prompt belong together: pass both or neither.")
    if "validation_prompt" in given and "validation_prompts" in given:
        raise ValueError("--validation_prompt and --validation_prompts mean the same; pass one of them.")
    for steps, epochs in (("validation_steps", "validation_epochs"), ("checkpointing_steps", "save_model_epochs")):
        if steps in given and epochs in given:
            raise ValueError(f"--{steps} and --{epochs} mean the same; pass one of them.")
    if "recipe" in given:
        if "num_frames" in given:
            raise ValueError("--num_frames is for fine-tuning; a recipe has `num_frames` in each of its `levels`.")
        return
    if "pretrained_model_name_or_path" not in given:
        raise ValueError(
            "Choose what to train: --pretrained_model_name_or_path with a saved pipeline to fine-tune, or --recipe "
            "with a file, or the name of one in training/recipes, to train a model from scratch."
        )
    if not sources:
        raise ValueError(f"Choose the training data: pass one of --{', --'.join(_SOURCES)}.")


# The placeholder in `--help` for a flag's value, by flag or by conversion function.
_BY_READING = {
    **dict.fromkeys(("count", "natural", "seed"), "N"),
    "number": "NUMBER",
    "numbers": "NUMBER,...",
    "per_level": "NUMBER[,...]",
    "names": "NAME,...",
    "shares": "COLUMN=FRACTION,...",
    "sizes": "HEIGHT,WIDTH;...",
}
_BY_NAME = {
    "recipe": "FILE",
    "pretrained_model_name_or_path": "FOLDER_OR_ID",
    "pretrained_vae_model_name_or_path": "FOLDER_OR_ID",
    "dataset_name": "FOLDER_OR_ID",
    "shards": "TAR",
    "validation_shards": "TAR",
    "instance_prompt": "TEXT",
    "class_prompt": "TEXT",
    "validation_prompt": "TEXT",
    "validation_prompts": "TEXT",
    "resume_from_checkpoint": "CHECKPOINT",
    "hub_model_id": "ID",
    "hub_token": "TOKEN",
}


def metavar(flag: Flag) -> str:
    """Return the placeholder in `--help` for a flag's value."""
    if flag.name in _BY_NAME:
        return _BY_NAME[flag.name]
    reading = getattr(flag.convert, "__name__", "")
    if reading in _BY_READING:
        return _BY_READING[reading]
    ends = {"_dir": "FOLDER", "_column": "COLUMN"}
    return next((word for end, word in ends.items() if flag.name.endswith(end)), "NAME")
