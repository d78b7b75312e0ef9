# SPDX-License-Identifier: Apache-2.0
"""The training data of a recipe: where images or clips come from, and how they are read.

Each way of storing data has its own class, with fields in addition to those that all have. In a recipe the fields are
together in one mapping (`data: {path: pictures, center_crop: false}`); the field that locates the data determines the
class.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, TypeVar

from ...checked_values import describe
from .fields import COUNT, NOT_NEGATIVE, check_ranges

Data = TypeVar("Data", bound="DataRecipe")


class Origin(NamedTuple):
    """A description of where data come from.

    Attributes:
        names: names of folders, data sets or files.
        what: what the names are, such as "the shards"; None for a folder or a data set on the Hub.
        split: the split that is trained on, if there are several.
        limit: maximum number of samples that are used.
    """

    names: tuple[str, ...]
    what: str | None = None
    split: str | None = None
    limit: int | None = None


@dataclass(frozen=True, kw_only=True)
class DataRecipe:
    """Settings of captioned images or clips, independent of how they are stored.

    `DataRecipe(path=…)` creates a `TableData`, `DataRecipe(shards=…)` a `ShardData`, and so on for each of
    `DATA_KINDS`.
    """

    place: ClassVar[str] = ""  # the field that locates the data, and so determines the class
    place_means: ClassVar[str] = ""
    instead: ClassVar[Mapping[str, str]] = {}  # what to do instead of setting fields of other kinds
    is_numbered: ClassVar[bool] = True  # whether samples can be accessed in any order

    image_column: str = "image"
    # If set, the data are clips, in this column. Shards have no columns: there any name means that samples are clips.
    video_column: str | None = None
    frame_stride: int | None = None  # take every k-th frame of a clip; None: spread frames evenly over the whole clip
    caption_column: str = "text"
    # Further columns with captions, and the fraction of the training samples that take their caption from each.
    other_caption_columns: dict[str, float] = dataclasses.field(default_factory=dict)
    caption: str | None = None  # caption of every image, instead of columns
    label_column: str | None = None  # column with the class of every image, for class-conditional models
    random_flip: bool = False
    center_crop: bool = True  # crop squares from the centre instead of at random
    image_interpolation_mode: Literal["area", "lanczos", "bicubic", "bilinear", "nearest"] = "area"
    micro_conditioning_offsets: dict[str, float] = dataclasses.field(default_factory=dict)
    # Crop images to the size (height, width) with the most similar aspect ratio instead of squares, in pixels of the
    # outermost trained level. None: sizes with about the area of the square, if `use_aspect_ratio_buckets` is set.
    aspect_ratio_buckets: tuple[tuple[int, ...], ...] | None = None
    use_aspect_ratio_buckets: bool | None = None  # None: only if there are `aspect_ratio_buckets`
    min_image_side: int = 0  # smaller images are skipped
    max_skipped_images: int = 100  # number of damaged or too small images after which the run ends
    embeddings_dir: str | None = None  # folder written by `diffusers-mdm precompute`

    def __new__(cls, **fields: Any) -> "DataRecipe":
        """Create an object of the class to which the fields belong."""
        if cls is not DataRecipe:
            return object.__new__(cls)
        kind = kind_of(fields)
        own_fields(kind, fields)
        return object.__new__(kind)

    def __post_init__(self) -> None:
        check_ranges(
            self, {**dict.fromkeys(("min_image_side", "max_skipped_images"), NOT_NEGATIVE), "frame_stride": COUNT}
        )
        if self.frame_stride is not None and self.video_column is None:
            raise ValueError(
                f"`frame_stride` is {self.frame_stride}, which applies to clips: set `video_column` to their column."
            )
        self._check_caption_columns()
        self._check_buckets()

    def _check_buckets(self) -> None:
        sizes = self.aspect_ratio_buckets
        if sizes is None:
            return
        if self.use_aspect_ratio_buckets is False:
            raise ValueError("`aspect_ratio_buckets` has no effect with `use_aspect_ratio_buckets: false`: omit one.")
        wrong = [size for size in sizes if len(size) != 2 or min(size) < 1]
        if wrong or not sizes or len(set(sizes)) < len(sizes):
            raise ValueError(
                f"`aspect_ratio_buckets` is {describe(sizes)}; expected different sizes, height and width in pixels, "
                "such as [[48, 80], [64, 64], [80, 48]]."
            )

    @property
    def has_buckets(self) -> bool:
        """Whether images are cropped to buckets of different aspect ratios instead of squares."""
        return bool(self.use_aspect_ratio_buckets or self.aspect_ratio_buckets)

    def _check_caption_columns(self) -> None:
        shares = self.other_caption_columns
        for column, share in shares.items():
            if not 0 < share < 1:
                raise ValueError(
                    f"`other_caption_columns` has {describe(share)} for {describe(column)}; expected a fraction of "
                    f"the samples, above 0 and below 1. For all samples, name the column as `caption_column`."
                )
        if math.fsum(shares.values()) > 1 + 1e-9:
            raise ValueError(
                f"The fractions in `other_caption_columns` have the sum {math.fsum(shares.values()):g}, expected at "
                f"most 1; the rest of the samples has the caption in `caption_column`."
            )
        if self.caption_column in shares:
            raise ValueError(
                f"`other_caption_columns` has {describe(self.caption_column)}, which is the `caption_column`: omit "
                f"it; samples without another caption have that one."
            )
        if shares and self.caption is not None:
            raise ValueError(
                f"`caption` is {describe(self.caption)} for every sample, so `other_caption_columns` would have no "
                f"effect: omit one of them."
            )

    @property
    def caption_columns(self) -> tuple[str, ...]:
        """The columns with captions, the main one first."""
        return (self.caption_column, *self.other_caption_columns)

    def with_main_captions(self: Data) -> Data:
        """Return the same data with the captions in `caption_column` only, as for validation."""
        return dataclasses.replace(self, other_caption_columns={}) if self.other_caption_columns else self

    @property
    def media_column(self) -> str:
        """The column with the clips or, without `video_column`, the images."""
        return self.image_column if self.video_column is None else self.video_column

    @property
    def has_validation(self) -> bool:
        """Whether there is held-out data."""
        return False

    def origin(self) -> Origin:
        """Describe where the data come from."""
        raise NotImplementedError(
            f"{type(self).__name__} does not implement `origin`, which describes where its data come from."
        )

    def relocated(self: Data, move: Callable[[str], str], move_files: Callable[[str], str]) -> Data:
        """Return the same data with other names.

        Args:
            move: returns the new name of a folder or data set.
            move_files: returns the new form of a file name pattern.
        """
        if self.embeddings_dir is None:
            return self
        return dataclasses.replace(self, embeddings_dir=move(self.embeddings_dir))

    def with_fields(self, **changes: Any) -> "DataRecipe":
        """Return a copy with other fields; a field that locates the data determines the class.

        Raises:
            ValueError: if the fields do not belong together.
        """
        named = any(changes.get(kind.place) is not None for kind in DATA_KINDS)
        kind = kind_of(changes) if named else type(self)
        own = own_fields(kind, changes)
        if kind is type(self):
            return dataclasses.replace(self, **own)
        return kind(**{field.name: getattr(self, field.name) for field in dataclasses.fields(DataRecipe)} | own)

    @classmethod
    def choose_kind(cls, values: dict[str, Any]) -> tuple[type["DataRecipe"], dict[str, Any]]:
        """Return the class for values from a recipe file, and the values for that class.

        Raises:
            ValueError: if they do not locate the data, do so twice, or contain fields of another class.
        """
        kind = kind_of(values) if cls is DataRecipe else cls
        return kind, own_fields(kind, values)


@dataclass(frozen=True, kw_only=True)
class TableData(DataRecipe):
    """Data in tables: a folder of images, clips or parquet files, or a data set on the Hub, with numbered records."""

    place: ClassVar[str] = "path"
    place_means: ClassVar[str] = "a folder or data set on the Hub"
    instead: ClassVar[Mapping[str, str]] = {"validation_shards": "name a `validation_split`"}

    path: str
    config_name: str | None = None
    train_split: str = "train"
    validation_split: str | None = None  # held out, for the validation loss
    max_train_samples: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(self, {"max_train_samples": COUNT})

    @property
    def has_validation(self) -> bool:
        """Whether a split is held out."""
        return self.validation_split is not None

    def origin(self) -> Origin:
        """The folder or data set."""
        return Origin((self.path,), None, self.train_split, self.max_train_samples)

    def relocated(self, move: Callable[[str], str], move_files: Callable[[str], str]) -> "TableData":
        """Return the same data with other names; see `DataRecipe.relocated`."""
        return dataclasses.replace(super().relocated(move, move_files), path=move(self.path))


@dataclass(frozen=True, kw_only=True)
class ShardData(DataRecipe):
    """Data in WebDataset tar files (shards), which are read as a stream."""

    place: ClassVar[str] = "shards"
    place_means: ClassVar[str] = "WebDataset tar files"
    instead: ClassVar[Mapping[str, str]] = {
        "max_train_samples": "name fewer shards",
        "validation_split": "name others as `validation_shards`",
    }
    is_numbered: ClassVar[bool] = False

    shards: tuple[str, ...]  # {000..123} in a name stands for a range of numbers
    validation_shards: tuple[str, ...] | None = None  # held out, for the validation loss
    shuffle_buffer: int = 1000  # number of samples that are shuffled together

    def __post_init__(self) -> None:
        super().__post_init__()
        for field in ("shards", "validation_shards"):
            if getattr(self, field) == ():
                raise ValueError(f"`{field}` is empty: name at least one tar file, or omit it.")
        check_ranges(self, {"shuffle_buffer": COUNT})

    @property
    def has_validation(self) -> bool:
        """Whether shards are held out."""
        return self.validation_shards is not None

    def origin(self) -> Origin:
        """The shards."""
        return Origin(self.shards, "the shards")

    def relocated(self, move: Callable[[str], str], move_files: Callable[[str], str]) -> "ShardData":
        """Return the same shards with other names; see `DataRecipe.relocated`."""
        held_out = self.validation_shards
        return dataclasses.replace(
            super().relocated(move, move_files),
            shards=tuple(map(move_files, self.shards)),
            validation_shards=None if held_out is None else tuple(map(move_files, held_out)),
        )


# A new kind of data needs a line here, and one in `SOURCES` (training/data/sources.py) for its reader.
DATA_KINDS: list[type[DataRecipe]] = [
    TableData,
    ShardData,
]


def kind_of(fields: Mapping[str, Any]) -> type[DataRecipe]:
    """Return the class to which fields belong, by the field that locates the data.

    Raises:
        ValueError: if there is no such field, or more than one.
    """
    found = [kind for kind in DATA_KINDS if fields.get(kind.place) is not None]
    if len(found) != 1:
        choices = " or ".join(f"`{kind.place}` ({kind.place_means})" for kind in DATA_KINDS)
        raise ValueError(f"set either {choices}.")
    return found[0]


def own_fields(kind: type[DataRecipe], fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields without those of other kinds, which are accepted if they have no effect (null, or the
    default).

    Raises:
        ValueError: if a field of another kind is set; the message says what to do instead.
    """
    own = {field.name for field in dataclasses.fields(kind)}
    foreign = {
        field.name: (other, field.default)
        for other in DATA_KINDS
        for field in dataclasses.fields(other)
        if field.name not in own
    }
    for name in foreign.keys() & fields.keys():
        other, default = foreign[name]
        if fields[name] is not None and fields[name] != default:
            instead = kind.instead.get(name, "omit it")
            raise ValueError(
                f"`{name}` belongs to data with `{other.place}`, not to data with `{kind.place}`: {instead}."
            )
    return {name: value for name, value in fields.items() if name not in foreign}
