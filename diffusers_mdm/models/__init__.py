# SPDX-License-Identifier: Apache-2.0
"""The network."""

from .forward_inputs import TextConditioning
from .level_config import LevelConfig
from .nested_unet import NestedUNetModel, NestedUNetOutput

__all__ = ["LevelConfig", "NestedUNetModel", "NestedUNetOutput", "TextConditioning"]
