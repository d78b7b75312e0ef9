# SPDX-License-Identifier: Apache-2.0
"""Growing a model in the middle of training: what old parameters have learnt, and their averages, stay.

A grown `NestedUNetModel` lists its old parameters first and in their old order, so what is kept by position
(diffusers' `EMAModel`) carries over as a prefix. Optimizer state is kept by name: see `optimizer.py`.
"""

from ..models.level_config import LevelConfig
from ..models.nested_unet import NestedUNetModel


def grow_model(unet: NestedUNetModel, row: LevelConfig) -> NestedUNetModel:
    """Wrap one more level around `unet`; its inner prediction does not change by a bit.

    Raises:
        RuntimeError: if the old parameters are not a prefix of the new ones, which the averages rely on.
    """
    grown = unet.add_level(row)
    old = [(name, tuple(value.shape)) for name, value in unet.named_parameters()]
    new = [(name, tuple(value.shape)) for name, value in grown.named_parameters()]
    if new[: len(old)] != old:
        raise RuntimeError("The grown model does not begin with the parameters of the old one, in their order.")
    return grown
