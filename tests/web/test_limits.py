# SPDX-License-Identifier: Apache-2.0
"""Limits are whole numbers, so that a typing mistake in a flag is not a page that refuses everything."""

import pytest

from diffusers_mdm.web.limits import Limits


@pytest.mark.parametrize("name", ["steps", "side", "images", "prompt_length", "waiting", "upload_megapixels"])
@pytest.mark.parametrize("value", [0, -1, 1.5, True, None, 10**9])
def test_wrong_limits_are_refused(name, value):
    with pytest.raises(ValueError, match=f"limit `{name}`"):
        Limits(**{name: value})
