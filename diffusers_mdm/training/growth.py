# SPDX-License-Identifier: Apache-2.0
"""Growing a model in the middle of training: weights, averaged weights and optimizer state of old parameters stay.

A grown `NestedUNetModel` lists its old parameters first and in their old order, so what is kept by position
(diffusers' `EMAModel`, torch optimizers) carries over as a prefix.
"""

from typing import Any

import torch
from diffusers.training_utils import EMAModel

from ..models.level_config import LevelConfig
from ..models.nested_unet import NestedUNetModel


def grow_model(unet: NestedUNetModel, row: LevelConfig) -> NestedUNetModel:
    """Wrap one more level around `unet`; its inner prediction does not change by a bit.

    Raises:
        RuntimeError: if the old parameters are not a prefix of the new ones, which EMA and optimizer rely on.
    """
    grown = unet.add_level(row)
    old = [(name, tuple(value.shape)) for name, value in unet.named_parameters()]
    new = [(name, tuple(value.shape)) for name, value in grown.named_parameters()]
    if new[: len(old)] != old:
        raise RuntimeError("The grown model does not begin with the parameters of the old one, in their order.")
    return grown


def grow_ema(ema: EMAModel, grown: torch.nn.Module) -> None:
    """Extend the averaged weights in place by the new parameters of `grown`, which start as they are."""
    new = list(grown.parameters())[len(ema.shadow_params) :]
    ema.shadow_params += [parameter.detach().clone() for parameter in new]


def carry_optimizer_state(saved: dict[str, Any], optimizer: torch.optim.Optimizer) -> None:
    """Give `optimizer` the moments in `saved` (another optimizer's `state_dict`), group by group, prefix by prefix.

    Groups are matched by their `name`; within a group the i-th old parameter is the i-th new one. Hyper-parameters
    (learning rate, betas) stay those of `optimizer`. Parameters without saved state start afresh.
    """
    old_groups = {group["name"]: group["params"] for group in saved["param_groups"]}
    current = optimizer.state_dict()
    state: dict[int, Any] = {}
    for group in current["param_groups"]:
        for old, new in zip(old_groups.get(group["name"], []), group["params"], strict=False):
            if old in saved["state"]:
                state[new] = saved["state"][old]
    optimizer.load_state_dict({"state": state, "param_groups": current["param_groups"]})
