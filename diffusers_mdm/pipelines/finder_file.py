# SPDX-License-Identifier: Apache-2.0
"""The small file beside a saved pipeline through which `DiffusionPipeline` finds its class."""

from __future__ import annotations

import os
from pathlib import Path

# Written beside the weights, so that diffusers finds the class where this package was not imported before.
FINDER_FILE = "pipeline.py"


def write_finder(pipeline: type, folder: str | os.PathLike) -> None:
    """Write the file into a folder, which is made if missing; classes of other packages get none.

    diffusers runs such files one after the other in the same module, and wants to find one pipeline there: so all of
    them use the same name. What the class is for makes their lengths differ, by which Python tells them apart when
    they were written in the same second.

    Args:
        pipeline: the class.
        folder: where the pipeline is saved.
    """
    package = pipeline.__module__.partition(".")[0]
    if package != __name__.partition(".")[0]:
        return
    purpose = (pipeline.__doc__ or pipeline.__name__).strip().splitlines()[0]
    source = f'"""{purpose}"""\n\nfrom {package} import {pipeline.__name__} as Pipeline  # noqa: F401\n'
    Path(folder).mkdir(parents=True, exist_ok=True)
    (Path(folder) / FINDER_FILE).write_text(source, encoding="utf-8")
