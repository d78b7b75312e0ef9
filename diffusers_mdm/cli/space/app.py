# SPDX-License-Identifier: Apache-2.0
"""The program of a Hugging Face Space: the page of `diffusers-mdm demo`, open to everybody.

It draws with the folders in `models/`, the Hub ids in `models.txt` (one per line), and those in the variable `MODELS`
of the Space (separated by spaces).
"""

import os
import sys
from pathlib import Path

PARSES_FIRST = True  # the package loads nothing slow before the models are known

from diffusers_mdm.cli.main import main

HERE = Path(__file__).resolve().parent


def sources(here: Path, variable: str) -> list[str]:
    """Return the models of the Space.

    Args:
        here: the folder of the Space.
        variable: folders or Hub ids, separated by spaces.
    """
    folders = sorted(str(path.parent) for path in here.glob("models/*/model_index.json"))
    listed = here / "models.txt"
    ids = listed.read_text(encoding="utf-8").split() if listed.is_file() else []
    return [*folders, *ids, *variable.split()]


if __name__ == "__main__":
    models = sources(HERE, os.environ.get("MODELS", ""))
    if not models:
        sys.exit("This Space has no model: set its variable MODELS to the id of one, or add a folder to models/.")
    sys.exit(main(["demo", *models, "--host", "0.0.0.0", "--port", os.environ.get("GRADIO_SERVER_PORT", "7860")]))
