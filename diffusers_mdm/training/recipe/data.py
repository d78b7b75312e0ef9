# SPDX-License-Identifier: Apache-2.0
"""What a recipe trains on: where the pictures or clips come from, and how they are read."""

import dataclasses
from dataclasses import dataclass
from typing import Literal

from .fields import COUNT, NOT_NEGATIVE, check_ranges


@dataclass(frozen=True)
class DataRecipe:
    """Captioned pictures or clips: a folder or Hub dataset id, or WebDataset shards.

    Folders hold parquet files, or picture or clip files beside a metadata file with their captions.
    """

    path: str | None = None
    shards: tuple[str, ...] | None = None  # tar files; {000..123} in a name stands for many
    config_name: str | None = None
    train_split: str = "train"
    validation_split: str | None = None  # held out, for the validation loss
    validation_shards: tuple[str, ...] | None = None  # the same, where `shards` are trained on
    image_column: str = "image"
    # Set, the data are clips, in this column. Shards have no columns: any name says that their samples hold clips.
    video_column: str | None = None
    frame_stride: int | None = None  # every k-th frame of a clip; None: spread evenly over the whole of it
    caption_column: str = "text"
    caption: str | None = None  # of every picture, in place of a column
    label_column: str | None = None  # class of every picture, for models with classes
    max_train_samples: int | None = None
    random_flip: bool = False
    center_crop: bool = True  # of the square; otherwise cropped at random
    image_interpolation_mode: Literal["area", "lanczos", "bicubic", "bilinear", "nearest"] = "area"
    micro_conditioning_offsets: dict[str, float] = dataclasses.field(default_factory=dict)
    min_image_side: int = 0  # smaller pictures are skipped
    max_skipped_images: int = 100  # corrupt or too small ones, before the run stops
    shuffle_buffer: int = 1000  # samples of the shards that are shuffled together
    embeddings_dir: str | None = None  # of training/precompute_text_embeddings.py

    def __post_init__(self) -> None:
        if (self.path is None) == (self.shards is None):
            raise ValueError("give either `path` (a folder or Hub dataset) or `shards` (WebDataset tar files).")
        if self.shards is not None and (self.validation_split is not None or self.max_train_samples is not None):
            raise ValueError(
                "`shards` have neither splits nor a number of pictures: name fewer shards in place of "
                "`max_train_samples`, and others as `validation_shards` in place of `validation_split`."
            )
        if self.shards is None and self.validation_shards is not None:
            raise ValueError("`validation_shards` go with `shards`; beside `path` give `validation_split`.")
        for field in ("shards", "validation_shards"):
            if getattr(self, field) == ():
                raise ValueError(f"`{field}` is empty: name at least one tar file, or leave it out.")
        check_ranges(
            self,
            {
                **dict.fromkeys(("min_image_side", "max_skipped_images"), NOT_NEGATIVE),
                **dict.fromkeys(("frame_stride", "shuffle_buffer", "max_train_samples"), COUNT),
            },
        )
        if self.frame_stride is not None and self.video_column is None:
            raise ValueError(
                f"`frame_stride` is {self.frame_stride}, which is about clips: name their column as `video_column`."
            )

    @property
    def media_column(self) -> str:
        """The column that is trained on: that of the clips, or without one that of the pictures."""
        return self.image_column if self.video_column is None else self.video_column

    @property
    def has_validation(self) -> bool:
        """Whether pictures are held out."""
        return self.validation_split is not None or self.validation_shards is not None
