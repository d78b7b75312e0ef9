# SPDX-License-Identifier: Apache-2.0
"""Widths of averages that exist, and enough of them."""

import pytest

from diffusers_mdm.training.recipe.optimizer import PostHocEmaRecipe


def test_the_defaults_are_those_of_the_paper():
    assert PostHocEmaRecipe().sigma_rels == (0.05, 0.10)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"sigma_rels": (0.1,)}, "sigma_rels"),
        ({"sigma_rels": (0.1, 0.1)}, "sigma_rels"),
        ({"sigma_rels": (0.1, 0.5)}, "sigma_rels"),
        ({"sigma_rels": (0.1, 0.0)}, "sigma_rels"),
        ({"snapshot_steps": 0}, "snapshot_steps"),
        ({"snapshots_total_limit": 1}, "snapshots_total_limit"),
    ],
)
def test_others_are_refused(fields, named):
    with pytest.raises(ValueError, match=f"`{named}`"):
        PostHocEmaRecipe(**fields)
