# SPDX-License-Identifier: Apache-2.0
"""From words to flags. Nothing here is slow to import, so that `--help` and a typing mistake are answered at once."""

import argparse
import difflib
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from .flag_table import GROUPS, Flag, metavar
from .inapplicable_flags import ALWAYS_SO, REASONS
from .kinds import TEXT_TO_IMAGE, CommandKind
from .messages import one_line

USAGE = """
  %(prog)s --recipe FILE --output_dir FOLDER [flags]
  %(prog)s --pretrained_model_name_or_path MODEL --train_data_dir FOLDER --output_dir FOLDER [flags]
  %(prog)s --help"""
_SOURCES = ("dataset_name", "train_data_dir", "shards", "instance_data_dir")
_ELSEWHERE = ("local_rank", "prediction_type", *ALWAYS_SO)  # accepted, without anything to set


class OneLineParser(argparse.ArgumentParser):
    """Says what is wrong in one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        """End the program."""
        self.exit(2, f"{self.prog}: error: {one_line(message)}\n")

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As in argparse; of words that mean nothing it says which flag may be meant."""
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            self.error(self._explain(unknown[0]))
        return parsed

    def _explain(self, word: str) -> str:
        name = word.split("=")[0]
        if not name.startswith("-"):
            return f"{name!r} belongs to no flag: write a text with spaces in quotes, and one value after a flag."
        near = difflib.get_close_matches(name.replace("-", "_"), self._plain_names(), 1)
        guess = f"did you mean {self._plain_names()[near[0]]}? " if near else ""
        return f"{name} is no flag of this command; {guess}--help lists all."

    def _plain_names(self) -> dict[str, str]:
        """Flags by their names as they look when - and _ are not told apart."""
        return {flag.replace("-", "_"): flag for flag in self._option_string_actions}


class _Inapplicable(argparse.Action):
    """A flag whose use is an error with a reason."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: Any, values: Any, option: Any = None) -> NoReturn:
        parser.error(f"{option} does not apply: {REASONS[self.dest]}.")


def build_parser(description: str = TEXT_TO_IMAGE.description) -> argparse.ArgumentParser:
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
        foreign.add_argument(f"--{name}", action=_Inapplicable, nargs="*", metavar="...", help=reason)
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
        metavar=None if flag.choices else metavar(flag),
        required=flag.name == "output_dir",
    )


def parse_command(
    argv: Sequence[str], kind: CommandKind = TEXT_TO_IMAGE
) -> tuple[argparse.ArgumentParser, dict[str, Any]]:
    """Read the words of a training command; mistakes end the program with one line that says what to do.

    Args:
        argv: the words.
        kind: which command it is.

    Returns:
        the parser, for mistakes that show later, and the flags by name, with the command's own defaults.
    """
    parser = build_parser(kind.description)
    given = given_flags(parser, argv)
    given = {**kind.defaults, **({} if "recipe" in given else kind.fine_tuning_defaults), **given}
    try:
        check_together(given)
    except ValueError as error:
        parser.error(str(error))
    return parser, given


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
            raise ValueError("--num_frames is for fine-tuning; a recipe has `num_frames` in each of its `levels`.")
        return
    if "pretrained_model_name_or_path" not in given:
        raise ValueError(
            "Say what to train: --pretrained_model_name_or_path a saved pipeline to fine-tune, or --recipe a file "
            "(training/recipes) to train a model from scratch."
        )
    if not sources:
        raise ValueError(f"Say what to train on: one of --{', --'.join(_SOURCES)}.")
