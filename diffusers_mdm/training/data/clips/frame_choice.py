# SPDX-License-Identifier: Apache-2.0
"""Choosing the frames of a clip to train on."""

from dataclasses import dataclass

from ...seeds import derive_seed
from ..skip_budget import UnusableSampleError

_FRAME_STREAM = 103  # distinct from the random streams of `samples.py`


@dataclass(frozen=True)
class FrameChoice:
    """Chooses F frames of each clip, in order.

    Without a stride these are the frames floor(i * N / F) of N: evenly spread, and without the same frame at both ends
    of a loop. With a stride k they are k frames apart, from a random start or in the middle of the clip. A single
    frame is a random one, or the middle one.

    Attributes:
        num_frames: F.
        stride: k; None spreads the frames over the whole clip.
        random: choose at random; otherwise take the middle.
    """

    num_frames: int = 1
    stride: int | None = None
    random: bool = True

    @property
    def is_random(self) -> bool:
        """Whether the frames depend on the position in the stream."""
        return self.random and (self.num_frames == 1 or self.stride is not None)

    @property
    def min_frames(self) -> int:
        """The minimum number of frames of a clip."""
        return self.num_frames if self.stride is None else (self.num_frames - 1) * self.stride + 1

    def indices(self, count: int, seed: int, position: int) -> list[int]:
        """Return the chosen frames, in ascending order; random choices depend only on (count, seed, position).

        Args:
            count: N, the number of frames of the clip.
            seed: seed of the stage.
            position: position in the stage's stream of samples.

        Raises:
            UnusableSampleError: if the clip is too short.
        """
        if count < self.min_frames:
            apart = "" if self.stride in (None, 1) else f", {self.stride} frames apart"
            raise UnusableSampleError(
                f"it has {count} frame{'s' if count != 1 else ''}, expected at least {self.min_frames} "
                f"({self.num_frames} are needed{apart})"
            )
        if self.num_frames > 1 and self.stride is None:
            return [number * count // self.num_frames for number in range(self.num_frames)]
        places = count - self.min_frames + 1
        first = derive_seed(seed, position, _FRAME_STREAM) % places if self.random else places // 2
        return [first + number * (self.stride or 1) for number in range(self.num_frames)]
