# SPDX-License-Identifier: Apache-2.0
"""The rows of the report: which method, with which changes, on which images, and in which order they are run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from benchmarks.paper.methods import Changes
from diffusers_mdm.training.recipe.stage import PlateauRecipe

METHODS, EMOJI, BIRDS = "methods", "emoji", "birds"
AGREE = {"levels agree": {"level_agreement": 1.0}}
GUIDED = {f"guidance {scale}": {"guidance_scale": scale} for scale in (1.5, 2.0, 3.0)}


@dataclass(frozen=True)
class Row:
    """One row, which is run with several seeds.

    Attributes:
        name: in the tables.
        method: of `methods.PARTS`.
        group: the question that the row belongs to.
        data: the images.
        changes: how it differs from the method.
        drawings: further drawings of the trained model: their names, and arguments of the pipeline.
    """

    name: str
    method: str
    group: str = METHODS
    data: str = EMOJI
    changes: Changes = field(default_factory=Changes)
    drawings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def folder(self) -> str:
        """The name of the folder of its runs."""
        return f"{self.data}-{self.name}".replace(",", "").replace(" ", "-").replace("%", "")


NAMES = {
    "mdm": "Matryoshka diffusion",
    "plain": "simple diffusion",
    "cascade": "cascade",
    "latent": "latent diffusion",
}


def _methods(data: str) -> tuple[Row, ...]:
    drawings = AGREE if data == BIRDS else {**GUIDED, **AGREE}
    return tuple(
        Row(name, method, data=data, drawings=drawings if method == "mdm" else {}) for method, name in NAMES.items()
    )


def _mdm(name: str, group: str, data: str = EMOJI, **changes: object) -> Row:
    return Row(name, "mdm", group, data, Changes(**changes))  # type: ignore[arg-type]


PREDICTS, LOSS, STEPS, FEW, SHIFT, LEVELS = "outer level", "loss", "inside out", "few images", "shift", "levels"
FEATURES = "shared features"
UNTIL = PlateauRecipe(every_steps=16, patience=2, min_gain=0.02)
# Main rows first, then the ablations, those whose answer is the least sure without a measurement first.
ROWS = (
    *_methods(EMOJI),
    _mdm("outer level predicts the image", PREDICTS, scheduler={"prediction_type": ["v_prediction", "sample"]}),
    _mdm("inside out", STEPS, inner_share=0.5),
    *_methods(BIRDS),
    _mdm("mdm on 10 %", FEW, data_share=0.1),
    Row("simple on 10 %", "plain", FEW, changes=Changes(data_share=0.1)),
    _mdm("loss of the outer level alone", LOSS, stage={"level_weights": (0.0, 1.0)}),
    _mdm("outer level predicts the image", PREDICTS, BIRDS, scheduler={"prediction_type": ["v_prediction", "sample"]}),
    _mdm("outer level predicts the residual", PREDICTS, scheduler={"prediction_type": ["v_prediction", "residual"]}),
    Row("three levels", "mdm_three", LEVELS),
    _mdm("no shift", SHIFT, scheduler={"shift_power": 0.0}),
    _mdm("shift power 2", SHIFT, scheduler={"shift_power": 2.0}),
    _mdm("mdm on 30 %", FEW, data_share=0.3),
    Row("simple on 30 %", "plain", FEW, changes=Changes(data_share=0.3)),
    _mdm("outer level weighs 4", LOSS, stage={"level_weights": (1.0, 4.0)}),
    _mdm("half of the batch at the outer level", LOSS, stage={"batch_fractions": (1.0, 0.5)}),
    _mdm("inside out, growing by the loss", STEPS, inner_share=0.5, until_plateau=UNTIL),
    _mdm(
        "outer level predicts the residual",
        PREDICTS,
        BIRDS,
        scheduler={"prediction_type": ["v_prediction", "residual"]},
    ),
    _mdm("levels share no features", FEATURES, no_features=("inwards", "outwards")),
    _mdm("no features for the inner level", FEATURES, no_features=("inwards",)),
    _mdm("no features for the outer level", FEATURES, no_features=("outwards",)),
)
