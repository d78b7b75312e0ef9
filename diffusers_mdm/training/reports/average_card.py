# SPDX-License-Identifier: Apache-2.0
"""The model card of averages that were made after training: which ones they are, beside the card of their run."""

import shutil
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData

from ..recipe.writing import FILE_NAME as RECIPE_FILE
from ..state.finished_files import INDEX_FILE
from ..state.post_hoc.reconstruction import Average
from .markdown import inline_code, plain_text
from .model_card import CARD_FILE, CURVES_FILE, MOVING_SAMPLES_FILE, SAMPLES_FILE, reported

# The card of the run is kept in a folder of its own, where its links still lead to its images and its recipe.
FOLDER = "run"
KEPT_FILES = (CARD_FILE, CURVES_FILE, SAMPLES_FILE, MOVING_SAMPLES_FILE, RECIPE_FILE)


def write_average_card(run_dir: Path, output_dir: Path, average: Average, sigma_rel: float, save_dtype: str) -> None:
    """Write `README.md` into the folder of an average, and copy the card of its run, if there is one, beside it.

    The model has already been saved, so a card that cannot be written is reported, but not fatal.

    Args:
        run_dir: output folder of the run.
        output_dir: folder of the result.
        average: the average.
        sigma_rel: its width.
        save_dtype: dtype of the result, if that is a pipeline.
    """
    with reported("The model card could not be written; the model is complete"):
        card = run_dir / CARD_FILE
        if card.is_file():
            (output_dir / FOLDER).mkdir()
            for file in (run_dir / name for name in KEPT_FILES):
                if file.is_file():
                    shutil.copyfile(file, output_dir / FOLDER / file.name)
            data = ModelCard.load(card).data
        else:
            data = ModelCardData(library_name="diffusers", tags=["diffusers", "diffusers-mdm", "matryoshka"])
        dtype = save_dtype if (output_dir / INDEX_FILE).is_file() else "fp32"  # of LoRA
        text = card_text(output_dir.resolve().name, run_dir.resolve().name, average, sigma_rel, dtype)
        if card.is_file():
            text += f"\n\n{run_text()}"
        ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}\n").save(output_dir / CARD_FILE)


def card_text(name: str, run_name: str, average: Average, sigma_rel: float, save_dtype: str) -> str:
    """Return the part of the card about the average."""
    return (
        f"# {plain_text(name)}\n\n"
        f"The model {inline_code(run_name)} with averaged weights (EMA) of another width, sigma_rel {sigma_rel:g}, at "
        f"step {average.step:,} of its training. `diffusers-mdm reconstruct-ema` made them of "
        f"{average.num_snapshots} snapshots; their profile differs by {100 * average.error:.2g} % from that of the "
        f"width. The dtype of the weights is `{save_dtype}`."
    )


def run_text() -> str:
    """Return the part of the card that refers to the card of the run."""
    return (
        f"How the model was trained, and how it is used, is described in [the card of its run]({FOLDER}/{CARD_FILE}). "
        "The samples and metrics there are those of the weights that the run saved itself, not of these. The example "
        "there loads the model of the run: replace its name by the name of this one."
    )
