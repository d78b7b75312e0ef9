# SPDX-License-Identifier: Apache-2.0
"""An autoencoder comes from exactly one place."""

import pytest

from diffusers_mdm.training.recipe.vae import VaeRecipe


def test_it_is_saved_somewhere_or_that_of_the_pipeline():
    assert VaeRecipe("somebody/vae", subfolder="vae", variant="fp16").pretrained == "somebody/vae"
    assert VaeRecipe(from_pipeline=True).pretrained is None


@pytest.mark.parametrize("fields", [{}, {"pretrained": "somebody/vae", "from_pipeline": True}])
def test_neither_and_both_are_refused(fields):
    with pytest.raises(ValueError, match=r"`pretrained`, .* `from_pipeline: true`"):
        VaeRecipe(**fields)


@pytest.mark.parametrize("field", ["subfolder", "revision", "variant"])
def test_where_a_pipeline_has_it_is_not_asked(field):
    with pytest.raises(ValueError, match=rf"`{field}`.*`from_pipeline`"):
        VaeRecipe(from_pipeline=True, **{field: "x"})
