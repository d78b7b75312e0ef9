# SPDX-License-Identifier: Apache-2.0
"""The flags of `diffusers-mdm evaluate`."""

import pytest

from diffusers_mdm.evaluation.score import METRICS as ALL_METRICS
from diffusers_mdm.training.commands.evaluation.flags import (
    DEFAULT_METRICS,
    METRICS,
    OF_CAPTIONS,
    build_parser,
    parse_arguments,
)

PARSER = build_parser("Measure.", "evaluate")


def test_flags_know_every_metric():
    # The flags are read before the slow imports, so they hold a copy of the names.
    assert METRICS == ALL_METRICS
    assert set(DEFAULT_METRICS) < set(METRICS)


def test_a_verb_is_needed(capsys):
    with pytest.raises(SystemExit):
        parse_arguments(PARSER, [])
    assert "VERB" in capsys.readouterr().err


def test_defaults():
    args = parse_arguments(PARSER, ["score", "--drawings", "a", "--reference", "b"])
    assert args.metrics is None  # those that suit the images
    assert set(OF_CAPTIONS) < set(METRICS)
    assert set(DEFAULT_METRICS) < set(METRICS)
    assert args.data_dir is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--num_seeds", "0"], "--num_seeds is 0; expected at least 1"),
        (["--prompts", "a", "--captions_file", "b"], "--prompts and --captions_file are both captions"),
    ],
)
def test_samples_need_one_source_of_captions_and_a_seed(capsys, words, message):
    with pytest.raises(SystemExit):
        parse_arguments(PARSER, ["samples", "--model_dir", "m", "--output", "o.png", *words])
    assert message in capsys.readouterr().err
