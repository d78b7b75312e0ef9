# SPDX-License-Identifier: Apache-2.0
"""Does a model of clips draw what it is asked for, and does it move? The nearest clip of the data set tells.

Clips are compared as pictures are in `retrieval`: by the L2 distance of their pixels, averaged down to 16 pixels a
side, over all frames.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ...pipelines.pipeline_mdm_video import MDMVideoPipeline
from ..data.batch import to_unit_range
from ..data.sources import open_validation_images
from ..recipe.data import TableData
from .retrieval import COMPARED_SIDE, nearest_records, pooled_drawings


@dataclass(frozen=True)
class ClipScores:
    """What `num_drawn` drawings were like.

    Attributes:
        num_drawn: how many there were.
        clip: share of them whose nearest clip is the captioned one.
        motion: mean difference between their successive frames, over that of the captioned clips: 1 if they move as
            much, 0 if they stand still.
    """

    num_drawn: int
    clip: float
    motion: float


def load_clip_gallery(
    path: str | Path, num_frames: int, split: str = "train", video_column: str = "video"
) -> tuple[torch.Tensor, list[str]]:
    """The clips of a split, `(M, F, 3, 16, 16)` in [-1, 1], and their captions.

    Raises:
        ValueError: there is no such split or column, or a clip has fewer frames.
    """
    data = TableData(path=str(path), validation_split=split, video_column=video_column, max_skipped_images=0)
    clips = open_validation_images(data, COMPARED_SIDE, num_frames=num_frames)
    assert clips is not None  # the split has been named
    batch = clips.load(range(len(clips)))
    return to_unit_range(batch.pixels).transpose(1, 2), batch.captions


def evaluate_clips(
    pipeline: MDMVideoPipeline,
    gallery: torch.Tensor,
    captions: Sequence[str],
    records: Sequence[int],
    batch_size: int = 8,
    seed: int = 0,
    **settings: Any,
) -> ClipScores:
    """Draw the captions of some clips and compare the drawings with all clips.

    Record r starts from noise seeded with `seed + r`, so a drawing does not depend on the others.

    Args:
        pipeline: draws as many frames as the gallery's clips have.
        gallery: `(M, F, 3, 16, 16)` in [-1, 1].
        captions: M of them.
        records: whose captions are drawn.
        batch_size: drawings at a time.
        seed: of the noise.
        **settings: arguments of the pipeline, such as `guidance_scale`.
    """
    wanted, seeds = [captions[record] for record in records], [seed + record for record in records]
    drawn = torch.cat(list(pooled_drawings(pipeline, "prompt", wanted, seeds, batch_size, **settings)))
    found, true = gallery[nearest_records(drawn, gallery)], gallery[list(records)]
    # Two captions can have the very same clip; each counts as the other's.
    hits = (found == true).flatten(1).all(1)
    return ClipScores(len(records), float(hits.cpu().double().mean()), float(motion(drawn).sum() / motion(true).sum()))


def motion(clips: torch.Tensor) -> torch.Tensor:
    """Mean absolute difference of successive frames, `(B,)`, of clips `(B, F, 3, H, W)`."""
    return clips.diff(dim=1).abs().flatten(1).mean(1)
