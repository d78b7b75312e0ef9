# SPDX-License-Identifier: Apache-2.0
"""The losses that a recipe can add to that of the pyramid."""

from dataclasses import dataclass

from .fields import COUNT, POSITIVE, check_ranges


@dataclass(frozen=True)
class AlignmentRecipe:
    """Representation alignment (REPA): features of level 0 resemble those of a frozen image encoder."""

    encoder: str  # "inception", or folder or Hub id of a vision model of transformers, such as DINOv2
    weight: float = 0.5
    hidden_channels: int = 512  # of the projection between the two, which is trained
    image_side: int | None = None  # side in pixels to which images are resized; None: the encoder's own
    stages: tuple[str, ...] | None = None  # names of the stages that have this loss; None: all

    def __post_init__(self) -> None:
        check_ranges(self, {"weight": POSITIVE, "hidden_channels": COUNT, "image_side": COUNT})


@dataclass(frozen=True)
class PerceptualRecipe:
    """A perceptual loss: features of a frozen network of the predicted clean image resemble those of the image."""

    network: str = "inception"  # or folder or Hub id of a vision model of transformers
    weight: float = 0.1
    image_side: int | None = None  # side in pixels to which images are resized; None: the network's own
    levels: tuple[int, ...] | None = None  # levels that are compared; None: the outermost of each stage
    stages: tuple[str, ...] | None = None  # names of the stages that have this loss; None: all

    def __post_init__(self) -> None:
        check_ranges(self, {"weight": POSITIVE, "image_side": COUNT})


ExtraLossRecipe = AlignmentRecipe | PerceptualRecipe
