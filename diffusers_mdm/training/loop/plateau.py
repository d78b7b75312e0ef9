# SPDX-License-Identifier: Apache-2.0
"""Deciding when a stage has reached a plateau: its smoothed validation loss, or another metric, no longer improves."""

import math
from dataclasses import dataclass

from ..recipe.stage import PlateauRecipe
from ..state.progress import PlateauState

RISING = ("clip", "retrieval")  # metrics of which more is better


@dataclass(frozen=True)
class Verdict:
    """The result of a measurement: whether the stage has ended, and a sentence with the numbers for the log."""

    ended: bool
    reason: str


class Plateau:
    """Decides after each measurement whether the stage ends; depends only on the measurements, also after resuming.

    With smoothing s, the loss is averaged as m_n = s m_{n-1} + (1 - s) loss_n from m_0 = 0, and the average corrected
    to m_n / (1 - s^n), so that early ones are not biased towards 0 (the bias correction of Adam, Kingma & Ba 2015,
    section 3). It is a gain if it is below (1 - min_gain) times the best one, which it then replaces: small gains add
    up over the measurements that `patience` allows. A metric of which more is better has to be above (1 + min_gain)
    times the best one.

    Args:
        recipe: the stage's `until_plateau`.
        state: saved in the checkpoint and changed by `update`; a new one for every stage.
        level: the stage's outermost level, whose loss is measured, for the log.
    """

    def __init__(self, recipe: PlateauRecipe, state: PlateauState, level: int = 0):
        self.recipe, self.state, self.level = recipe, state, level

    def is_due(self, step: int) -> bool:
        """Return whether to measure after `step` optimizer steps of the stage."""
        return step > (self.state.last_step or 0) and step % self.recipe.every_steps == 0

    def is_over(self, step: int) -> bool:
        """Return whether the stage has ended at `step`, by the measurements so far."""
        return self.state.without_gain >= self.recipe.patience and step >= self.recipe.min_steps

    def update(self, step: int, loss: float) -> Verdict:
        """Record the validation loss, or the value of the recipe's metric, after `step` optimizer steps of the stage.

        A value that is not finite is not a gain, and is not included in the average.

        Raises:
            ValueError: if `step` is not after the last one, since a measurement must not count twice.
        """
        recipe, state = self.recipe, self.state
        if state.last_step is not None and step <= state.last_step:
            raise ValueError(
                f"Step {step} was measured already (the last one was {state.last_step}). Measure where `is_due` says "
                "so, and begin every stage with a new `PlateauState`."
            )
        state.last_step = step
        smoothed = self._smooth(loss) if math.isfinite(loss) else None
        if smoothed is not None and self._is_gain(smoothed):
            reason = self._gain(smoothed)
            state.best, state.best_step, state.without_gain = smoothed, step, 0
            return Verdict(ended=False, reason=reason)
        state.without_gain += 1
        worn_out = state.without_gain >= recipe.patience
        reason = self._no_gain(smoothed, loss)
        if worn_out and step < recipe.min_steps:
            reason += f"; the stage continues to step {recipe.min_steps} at least"
        return Verdict(ended=self.is_over(step), reason=reason)

    @property
    def _rises(self) -> bool:
        return self.recipe.metric in RISING

    def _is_gain(self, smoothed: float) -> bool:
        best, least = self.state.best, self.recipe.min_gain
        if best is None:
            return True
        # The unbiased kernel distance (kid) can be negative.
        if self._rises:
            return smoothed > best * (1 + (least if best >= 0 else -least))
        return smoothed < best * (1 - (least if best >= 0 else -least))

    def _smooth(self, loss: float) -> float:
        state, past = self.state, self.recipe.smoothing
        state.measurements += 1
        state.average = past * state.average + (1 - past) * loss
        return state.average / (1 - past**state.measurements)

    @property
    def _name(self) -> str:
        return f"{'smoothed ' if self.recipe.smoothing else ''}validation {self.recipe.metric} of level {self.level}"

    def _gain(self, smoothed: float) -> str:
        best = self.state.best
        if best is None:
            return f"{self._name} began at {smoothed:.5g}"
        share = f"{100 * abs(1 - smoothed / best):.3g} %" if best else f"{abs(smoothed):.3g}"
        way = f"rose by {share} above" if self._rises else f"fell by {share} below"
        return f"{self._name} {smoothed:.5g} {way} its best {best:.5g} (step {self.state.best_step})"

    def _no_gain(self, smoothed: float | None, loss: float) -> str:
        state, recipe = self.state, self.recipe
        number = f"{loss}" if smoothed is None else f"{smoothed:.5g}"
        if state.without_gain < recipe.patience:
            count = f"{state.without_gain} of {recipe.patience} measurements"
        else:
            count = "1 measurement" if state.without_gain == 1 else f"{state.without_gain} measurements"
        if state.best is None:
            return f"{self._name} {number} was never a finite number in {count}"
        verb, place = ("rise", "above") if self._rises else ("fall", "below")
        gain = f"{verb} by {100 * recipe.min_gain:.3g} %" if recipe.min_gain else verb
        best = f"{state.best:.5g} (step {state.best_step})"
        return f"{self._name} {number} did not {gain} {place} its best {best} in {count}"
