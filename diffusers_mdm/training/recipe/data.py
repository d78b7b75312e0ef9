# SPDX-License-Identifier: Apache-2.0
"""What a recipe trains on: where the pictures or clips come from, and how they are read.

There is a kind of data for each way of storing them, with fields of its own beside those that all have. In a recipe
they stand together (`data: {path: pictures, center_crop: false}`); the field that says where the data are tells the
kind.
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, TypeVar

from .fields import COUNT, NOT_NEGATIVE, check_ranges

Data = TypeVar("Data", bound="DataRecipe")


class Origin(NamedTuple):
    """Where data come from, for a person.

    Attributes:
        names: of folders, data sets or files.
        what: what these are, such as "the shards"; None for a folder or a data set of the Hub.
        split: that is trained on, if they have several.
        limit: so many samples are used at most.
    """

    names: tuple[str, ...]
    what: str | None = None
    split: str | None = None
    limit: int | None = None


@dataclass(frozen=True, kw_only=True)
class DataRecipe:
    """Captioned pictures or clips, wherever they are stored.

    `DataRecipe(path=…)` makes a `TableData`, `DataRecipe(shards=…)` a `ShardData`, and so on for each of `DATA_KINDS`.
    """

    place: ClassVar[str] = ""  # the field that says where the data are, and so of which kind
    place_means: ClassVar[str] = ""
    instead: ClassVar[Mapping[str, str]] = {}  # what to do in place of fields of other kinds
    is_numbered: ClassVar[bool] = True  # whether any sample can be had at any time

    image_column: str = "image"
    # Set, the data are clips, in this column. Shards have no columns: any name says that their samples hold clips.
    video_column: str | None = None
    frame_stride: int | None = None  # every k-th frame of a clip; None: spread evenly over the whole of it
    caption_column: str = "text"
    caption: str | None = None  # of every picture, in place of a column
    label_column: str | None = None  # class of every picture, for models with classes
    random_flip: bool = False
    center_crop: bool = True  # of the square; otherwise cropped at random
    image_interpolation_mode: Literal["area", "lanczos", "bicubic", "bilinear", "nearest"] = "area"
    micro_conditioning_offsets: dict[str, float] = dataclasses.field(default_factory=dict)
    min_image_side: int = 0  # smaller pictures are skipped
    max_skipped_images: int = 100  # corrupt or too small ones, before the run stops
    embeddings_dir: str | None = None  # of training/precompute_text_embeddings.py

    def __new__(cls, **fields: Any) -> "DataRecipe":
        """An object of the kind that the fields are of."""
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
                f"`frame_stride` is {self.frame_stride}, which is about clips: name their column as `video_column`."
            )

    @property
    def media_column(self) -> str:
        """The column that is trained on: that of the clips, or without one that of the pictures."""
        return self.image_column if self.video_column is None else self.video_column

    @property
    def has_validation(self) -> bool:
        """Whether pictures are held out."""
        return False

    def origin(self) -> Origin:
        """Where the data come from."""
        raise NotImplementedError(f"{type(self).__name__} does not say where its data come from (`origin`).")

    def relocated(self: Data, move: Callable[[str], str], move_files: Callable[[str], str]) -> Data:
        """The same data under other names.

        Args:
            move: gives a folder or data set its new name.
            move_files: the same for patterns of names of files.
        """
        if self.embeddings_dir is None:
            return self
        return dataclasses.replace(self, embeddings_dir=move(self.embeddings_dir))

    def with_fields(self, **changes: Any) -> "DataRecipe":
        """The same with other fields; one that says where the data are makes them of its kind.

        Raises:
            ValueError: if fields do not go together.
        """
        named = any(changes.get(kind.place) is not None for kind in DATA_KINDS)
        kind = kind_of(changes) if named else type(self)
        own = own_fields(kind, changes)
        if kind is type(self):
            return dataclasses.replace(self, **own)
        return kind(**{field.name: getattr(self, field.name) for field in dataclasses.fields(DataRecipe)} | own)

    @classmethod
    def choose_kind(cls, values: dict[str, Any]) -> tuple[type["DataRecipe"], dict[str, Any]]:
        """The kind that values from a recipe file are of, and those that it has.

        Raises:
            ValueError: if they name no place, or several, or fields of another kind.
        """
        kind = kind_of(values) if cls is DataRecipe else cls
        return kind, own_fields(kind, values)


@dataclass(frozen=True, kw_only=True)
class TableData(DataRecipe):
    """A folder of pictures, clips or parquet files, or a data set of the Hub: records with numbers and columns."""

    place: ClassVar[str] = "path"
    place_means: ClassVar[str] = "a folder or data set of the Hub"
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
        """The same data under other names; see `DataRecipe.relocated`."""
        return dataclasses.replace(super().relocated(move, move_files), path=move(self.path))


@dataclass(frozen=True, kw_only=True)
class ShardData(DataRecipe):
    """WebDataset tar files, which are read as a stream."""

    place: ClassVar[str] = "shards"
    place_means: ClassVar[str] = "WebDataset tar files"
    instead: ClassVar[Mapping[str, str]] = {
        "max_train_samples": "name fewer shards",
        "validation_split": "name others as `validation_shards`",
    }
    is_numbered: ClassVar[bool] = False

    shards: tuple[str, ...]  # {000..123} in a name stands for many
    validation_shards: tuple[str, ...] | None = None  # held out, for the validation loss
    shuffle_buffer: int = 1000  # samples that are shuffled together

    def __post_init__(self) -> None:
        super().__post_init__()
        for field in ("shards", "validation_shards"):
            if getattr(self, field) == ():
                raise ValueError(f"`{field}` is empty: name at least one tar file, or leave it out.")
        check_ranges(self, {"shuffle_buffer": COUNT})

    @property
    def has_validation(self) -> bool:
        """Whether shards are held out."""
        return self.validation_shards is not None

    def origin(self) -> Origin:
        """The shards."""
        return Origin(self.shards, "the shards")

    def relocated(self, move: Callable[[str], str], move_files: Callable[[str], str]) -> "ShardData":
        """The same shards under other names; see `DataRecipe.relocated`."""
        held_out = self.validation_shards
        return dataclasses.replace(
            super().relocated(move, move_files),
            shards=tuple(map(move_files, self.shards)),
            validation_shards=None if held_out is None else tuple(map(move_files, held_out)),
        )


# A new kind of data has one line here, and one in `SOURCES` (training/data/sources.py), which reads it.
DATA_KINDS: list[type[DataRecipe]] = [
    TableData,
    ShardData,
]


def kind_of(fields: Mapping[str, Any]) -> type[DataRecipe]:
    """The kind of data that fields are of, by the one that says where they are.

    Raises:
        ValueError: if there is none, or more than one.
    """
    found = [kind for kind in DATA_KINDS if fields.get(kind.place) is not None]
    if len(found) != 1:
        choices = " or ".join(f"`{kind.place}` ({kind.place_means})" for kind in DATA_KINDS)
        raise ValueError(f"give either {choices}.")
    return found[0]


def own_fields(kind: type[DataRecipe], fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields without those that other kinds have, which may be there if they say nothing (null, or the default).

    Raises:
        ValueError: if one of another kind has been set; the message says what to do instead.
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
            instead = kind.instead.get(name, "leave it out")
            raise ValueError(f"`{name}` goes with `{other.place}`, not with `{kind.place}`: {instead}.")
    return {name: value for name, value in fields.items() if name not in foreign}
