# SPDX-License-Identifier: Apache-2.0
"""The rows of the report: which method, with which changes, on which images, and in which order they are run."""

from __future__ import annotations

from dataclasses import dataclass, field

from benchmarks.paper.methods import Changes

METHODS, EMOJI, BIRDS = "methods", "emoji", "birds"


@dataclass(frozen=True)
class Row:
    """One row, which is run with several seeds.

    Attributes:
        name: in the tables.
        method: of `methods.PARTS`.
        group: the question that the row belongs to.
        data: the images.
        changes: how it differs from the method.
    """

    name: str
    method: str
    group: str = METHODS
    data: str = EMOJI
    changes: Changes = field(default_factory=Changes)

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
    return tuple(Row(name, method, data=data) for method, name in NAMES.items())


def _mdm(name: str, group: str, data: str = EMOJI, **changes: object) -> Row:
    return Row(name, "mdm", group, data, Changes(**changes))  # type: ignore[arg-type]


PREDICTS, LOSS, STEPS, FEW, SHIFT = "outer level", "loss", "inside out", "few images", "shift"
# Main rows first, then the ablations, those whose answer is the least sure without a measurement first.
ROWS = (
    *_methods(EMOJI),
    _mdm("inside out", STEPS, inner_share=0.5),
    _mdm("loss of the outer level alone", LOSS, stage={"level_weights": (0.0, 1.0)}),
    _mdm("outer level predicts the image", PREDICTS, scheduler={"prediction_type": ["v_prediction", "sample"]}),
    _mdm("mdm on 10 %", FEW, data_share=0.1),
    Row("simple on 10 %", "plain", FEW, changes=Changes(data_share=0.1)),
    *_methods(BIRDS),
    _mdm("outer level predicts the residual", PREDICTS, scheduler={"prediction_type": ["v_prediction", "residual"]}),
    _mdm(
        "outer level predicts the image",
        PREDICTS,
        BIRDS,
        scheduler={"prediction_type": ["v_prediction", "sample"]},
    ),
    _mdm("mdm on 30 %", FEW, data_share=0.3),
    Row("simple on 30 %", "plain", FEW, changes=Changes(data_share=0.3)),
    _mdm("no shift", SHIFT, scheduler={"shift_power": 0.0}),
    _mdm("shift power 2", SHIFT, scheduler={"shift_power": 2.0}),
    _mdm("outer level weighs 4", LOSS, stage={"level_weights": (1.0, 4.0)}),
    _mdm("half of the batch at the outer level", LOSS, stage={"batch_fractions": (1.0, 0.5)}),
)
