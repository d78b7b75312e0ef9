# SPDX-License-Identifier: Apache-2.0
"""The model: `NestedUNetModel` and its parts."""

from .forward_inputs import TextConditioning
from .inner_level_cache import InnerLevelCacheConfig
from .level_config import LevelConfig
from .nested_unet import NestedUNetModel, NestedUNetOutput

__all__ = ["InnerLevelCacheConfig", "LevelConfig", "NestedUNetModel", "NestedUNetOutput", "TextConditioning"]
