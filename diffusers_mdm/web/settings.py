# SPDX-License-Identifier: Apache-2.0
"""What one drawing is made with."""

from __future__ import annotations

from dataclasses import dataclass

from diffusers_mdm.schedulers.reverse_steps import ALGORITHMS

# The solver of the model's folder, and DDIM with new noise at every step.
AS_SAVED, ANCESTRAL = "as saved", "ancestral"
SOLVERS = (AS_SAVED, *ALGORITHMS, ANCESTRAL)


@dataclass(frozen=True)
class Settings:
    """Everything that determines a drawing, except an uploaded image.

    Attributes:
        task: name of the tab.
        model: name of the model on the page.
        prompt: text, for models that read text.
        negative_prompt: text of the unconditional prediction of guidance.
        label: a class by name or number, for models with classes.
        level: the outermost level that is drawn, 0 for the innermost.
        steps: denoising steps.
        solver: one of `SOLVERS`.
        guidance: guidance scale w of each drawn level, innermost first; 1 turns guidance off.
        images: how many images or clips are drawn.
        seed: image i starts from noise with this seed + i.
        strength: for edits, 0 to 1: how much of the image is lost in noise.
    """

    task: str
    model: str
    prompt: str = ""
    negative_prompt: str = ""
    label: str = ""
    level: int = 0
    steps: int = 50
    solver: str = AS_SAVED
    guidance: tuple[float, ...] = (1.0,)
    images: int = 1
    seed: int = 0
    strength: float = 0.8
