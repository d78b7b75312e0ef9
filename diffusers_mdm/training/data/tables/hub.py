# SPDX-License-Identifier: Apache-2.0
"""Data sets that `datasets` finds by itself, on the Hub or in files of other kinds, and its errors in one line."""

import contextlib
from collections.abc import Iterator
from glob import has_magic
from pathlib import Path

import datasets
import pyarrow  # type: ignore[import-untyped]
import yaml

# What `datasets` and its readers raise at data that they cannot read, beside OSError (network, disk), which passes.
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
    """Turn what `datasets` raises at data that it cannot read into a `ValueError` with its first cause.

    Args:
        path: of the data set, for the message.
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
    """All splits of a data set of the Hub, or of a folder of files that `datasets` knows.

    Raises:
        ValueError: if it cannot be read, or the name of the folder would be taken for a pattern.
        FileNotFoundError: if there is none.
        OSError: if it cannot be fetched now.
    """
    if Path(path).is_dir() and has_magic(str(Path(path).resolve())):
        raise ValueError(
            f"The name of the folder {path} has one of the characters * ? [ ], which `datasets` takes for a pattern; "
            "rename it. (Folders of parquet, picture or clip files may have any name.)"
        )
    with reasons_of_datasets(path):
        return datasets.load_dataset(path, config_name)
