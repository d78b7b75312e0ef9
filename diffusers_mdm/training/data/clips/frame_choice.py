# SPDX-License-Identifier: Apache-2.0
"""Which frames of a clip are trained on."""

from dataclasses import dataclass

from ...seeds import derive_seed
from ..skip_budget import UnusableSampleError

_FRAME_STREAM = 103  # beside the streams of `samples.py`


@dataclass(frozen=True)
class FrameChoice:
    """F frames of each clip, in their order.

    Without a stride they are frames floor(i * N / F) of N: spread evenly, with no frame twice at the ends of a loop.
    With a stride k they are k frames apart, from a random place or in the middle of the clip. A single frame is any
    one, or the middle one.

    Attributes:
        num_frames: F.
        stride: k; None spreads the frames over the whole clip.
        random: draw what is left open; otherwise take the middle.
    """

    num_frames: int = 1
    stride: int | None = None
    random: bool = True

    @property
    def is_random(self) -> bool:
        """Whether another place in the stream may show other frames of the same clip."""
        return self.random and (self.num_frames == 1 or self.stride is not None)

    @property
    def min_frames(self) -> int:
        """Frames that a clip must have."""
        return self.num_frames if self.stride is None else (self.num_frames - 1) * self.stride + 1

    def indices(self, count: int, seed: int, position: int) -> list[int]:
        """The frames that are taken, rising; what is drawn depends on (count, seed, position) alone.

        Args:
            count: N, the frames of the clip.
            seed: of the stage.
            position: the place in its stream.

        Raises:
            UnusableSampleError: if the clip is too short.
        """
        if count < self.min_frames:
            apart = "" if self.stride in (None, 1) else f", each {self.stride} after the one before"
            raise UnusableSampleError(
                f"it has {count} frame{'s' if count != 1 else ''}, expected at least {self.min_frames} "
                f"({self.num_frames} are trained on{apart})"
            )
        if self.num_frames > 1 and self.stride is None:
            return [number * count // self.num_frames for number in range(self.num_frames)]
        places = count - self.min_frames + 1
        first = derive_seed(seed, position, _FRAME_STREAM) % places if self.random else places // 2
        return [first + number * (self.stride or 1) for number in range(self.num_frames)]
