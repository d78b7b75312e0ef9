# SPDX-License-Identifier: Apache-2.0
"""The network."""

from .level_config import LevelConfig
from .nested_unet import NestedUNetModel, NestedUNetOutput
from .text_conditioning import TextConditioning

__all__ = ["LevelConfig", "NestedUNetModel", "NestedUNetOutput", "TextConditioning"]
