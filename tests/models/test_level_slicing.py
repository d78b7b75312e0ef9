# SPDX-License-Identifier: Apache-2.0
"""Level slicing: one sample at a time, with the same predictions."""

import pytest
import torch


@pytest.mark.parametrize("kind", ["images", "clips"])
@torch.no_grad()
def test_slicing_does_not_change_predictions(kind, request):
    """With three samples at level 0, two at level 1 and one at level 2, so that outer levels lack some."""
    prefix = "video_" if kind == "clips" else ""
    model, inputs = (request.getfixturevalue(prefix + name) for name in ("model", "inputs"))
    expected = model(**inputs).sample
    batch_sizes = []
    for level in model.levels[1:]:
        level.encoder.register_forward_pre_hook(lambda module, inputs: batch_sizes.append(len(inputs[2])))
    model.enable_level_slicing()
    for level, other in zip(model(**inputs).sample, expected, strict=True):
        torch.testing.assert_close(level, other, rtol=0, atol=2e-5)
    assert set(batch_sizes) == {1}
    model.disable_level_slicing()
    model(**inputs)
    assert max(batch_sizes) == 2
