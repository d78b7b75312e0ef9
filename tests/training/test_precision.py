# SPDX-License-Identifier: Apache-2.0
from typing import get_args

import pytest
import torch

from diffusers_mdm.training.precision import DTYPES, frozen_dtype
from diffusers_mdm.training.recipe.recipe import Precision


@pytest.mark.parametrize("name", get_args(Precision))
def test_frozen_weights_have_the_precision_of_the_run(name):
    assert frozen_dtype(name) == (torch.float32 if name == "no" else DTYPES[name])
