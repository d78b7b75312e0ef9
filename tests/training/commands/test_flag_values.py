# SPDX-License-Identifier: Apache-2.0
import argparse

import pytest

from diffusers_mdm.training.commands.flag_values import (
    count,
    names,
    natural,
    naturals,
    number,
    numbers,
    seed,
    shares,
    tracker,
)


def test_values_are_parsed():
    assert (count("3"), natural("0"), seed("0"), number("1e-5")) == (3, 0, 0, 1e-5)
    assert numbers("1,0.5") == (1.0, 0.5)
    assert naturals("0,2") == (0, 2)
    assert names("to_q, to_k,") == ("to_q", "to_k")
    assert shares("label=0.15, a=b=.5") == {"label": 0.15, "a=b": 0.5}
    assert shares("") == {}
    assert (tracker("none"), tracker("wandb")) == (None, "wandb")


@pytest.mark.parametrize(
    ("parse", "text"),
    [
        (count, "0"),
        (count, "1.5"),
        (natural, "-1"),
        (naturals, "0,-1"),
        (seed, "-1"),
        (seed, str(2**32)),
        (number, "nan"),
        (number, "a"),
    ]
    + [(shares, text) for text in ("label", "=0.5", "label=much", "label=0.1,label=0.2")],
)
def test_wrong_values_say_what_was_expected(parse, text):
    with pytest.raises(argparse.ArgumentTypeError, match="must"):
        parse(text)
