# SPDX-License-Identifier: Apache-2.0
"""The known checkpoints: their configs describe the models of the published sizes, tensor by tensor."""

import json
import math

import pytest
import torch

from diffusers_mdm.conversion.apple_mdm import TABLE
from diffusers_mdm.conversion.apple_mdm_config import map_apple_config, read_apple_config
from diffusers_mdm.conversion.model_building import check_names_and_shapes, empty_model
from diffusers_mdm.fetching.published import CHECKPOINTS
from tests.conversion.recorded_models import GOLDEN

SHAPES = json.loads((GOLDEN / "fullsize_state_dict_shapes.json").read_text())


# The largest contains the others.
SMALLER = [pytest.param(name, marks=pytest.mark.slow) for name in ("flickr64", "flickr256")]


@pytest.mark.parametrize("name", [*SMALLER, "flickr1024"])
def test_the_config_is_that_of_the_published_size(name):
    checkpoint = CHECKPOINTS[name]
    side = checkpoint.sides[-1]
    recorded = SHAPES[f"cc12m_{side}x{side}"]
    weights = {key: torch.empty(shape, device="meta") for key, shape in recorded["state_dict"].items()}
    unet, scheduler = map_apple_config(weights, read_apple_config(checkpoint.config_path))
    native, unused = TABLE.to_native(weights)
    model = empty_model(unet)
    check_names_and_shapes(model, native)
    assert not unused
    assert sum(math.prod(tensor.shape) for tensor in native.values()) == recorded["num_params"]
    assert model.sample_sizes == checkpoint.sides
    assert unet["micro_conditioning_defaults"] == tuple((float(s),) for s in checkpoint.sides)
    # As released: skip_normalization is true in the outermost level and false in the one between.
    assert unet["normalize_input"] == {64: (False,), 256: (False, False), 1024: (False, True, False)}[side]
    assert scheduler["shift_power"] == (2.0 if side == 1024 else 1.0)
    assert (scheduler["level_scaling"], scheduler["prediction_type"]) == ("shift", "v_prediction")


def test_names_and_files_are_the_publishers():
    assert [one.file for one in CHECKPOINTS.values()] == [
        "flickr64/vis_model.pth",
        "flickr256/vis_model.pth",
        "flickr1024/vis_model.pth",
    ]
