# SPDX-License-Identifier: Apache-2.0
"""The file `pipeline.py` in a saved pipeline, with which `DiffusionPipeline` finds its class."""

from __future__ import annotations

import os
from pathlib import Path

# Written into the folder, so that diffusers finds the class if this package has not been imported.
FINDER_FILE = "pipeline.py"


def write_finder(pipeline: type, folder: str | os.PathLike) -> None:
    """Write the file into a folder, which is created if missing; not for classes of other packages.

    diffusers executes such files in the same module and expects a single pipeline there, so all of them use the same
    name. They contain the purpose of the class, so that their lengths differ: by that Python distinguishes files that
    were written in the same second.

    Args:
        pipeline: the class.
        folder: folder of the saved pipeline.
    """
    package = pipeline.__module__.partition(".")[0]
    if package != __name__.partition(".")[0]:
        return
    purpose = (pipeline.__doc__ or pipeline.__name__).strip().splitlines()[0]
    source = f'"""{purpose}"""\n\nfrom {package} import {pipeline.__name__} as Pipeline  # noqa: F401\n'
    Path(folder).mkdir(parents=True, exist_ok=True)
    (Path(folder) / FINDER_FILE).write_text(source, encoding="utf-8")
