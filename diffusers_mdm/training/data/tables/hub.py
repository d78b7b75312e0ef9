# SPDX-License-Identifier: Apache-2.0
"""Loading data sets with `datasets`, from the Hub or from files of other kinds, with its errors in one line."""

import contextlib
from collections.abc import Iterator
from glob import has_magic
from pathlib import Path

import datasets
import pyarrow  # type: ignore[import-untyped]
import yaml

# What `datasets` and its readers raise for data that they cannot read, besides OSError (network, disk).
_ERRORS = (
    datasets.exceptions.DatasetsError,
    pyarrow.ArrowException,
    yaml.YAMLError,
    ArithmeticError,
    AttributeError,
    ImportError,
    LookupError,
    NotImplementedError,
    RecursionError,
    RuntimeError,
    TypeError,
    ValueError,
)


@contextlib.contextmanager
def reasons_of_datasets(path: str) -> Iterator[None]:
    """Convert errors of `datasets` for unreadable data inside the block to a `ValueError` with the first cause.

    Args:
        path: path of the data set, for the message.
    """
    try:
        yield
    except FileNotFoundError:
        raise
    except _ERRORS as error:
        cause: BaseException = error
        while (deeper := cause.__cause__ or cause.__context__) is not None:
            cause = deeper
        told = " ".join(str(cause).split())[:400] or type(cause).__name__
        raise ValueError(f"{path} cannot be read as a data set: {told} ({type(cause).__name__})") from error


def load_with_datasets(path: str, config_name: str | None) -> datasets.DatasetDict:
    """Load all splits of a data set on the Hub, or of a folder of files that `datasets` supports.

    Raises:
        ValueError: if it cannot be read, or the name of the folder would be taken as a pattern.
        FileNotFoundError: if it does not exist.
        OSError: if it cannot be downloaded at the moment.
    """
    if Path(path).is_dir() and has_magic(str(Path(path).resolve())):
        raise ValueError(
            f"The name of the folder {path} has one of the characters * ? [ ], which `datasets` takes as a "
            f"pattern; rename it. (Folders of parquet, image or clip files can have any name.)"
        )
    with reasons_of_datasets(path):
        return datasets.load_dataset(path, config_name)
