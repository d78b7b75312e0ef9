# SPDX-License-Identifier: Apache-2.0
"""The progress reports of a stage: progress bar, log lines, tracker entries and lines of the history."""

import contextlib
import datetime
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping

import torch
from accelerate import Accelerator
from diffusers.utils.logging import tqdm

from ..loss.pyramid_loss import table_values
from ..state.history import History

logger = logging.getLogger(__name__)


class Meter:
    """Context manager that reports the progress of one stage. Every process must make the same calls; the main one
    writes.

    Means are over the steps since the last report and over all processes; each report costs one reduction.

    Args:
        accelerator: holds the trackers, and reduces sums over processes.
        history: receives one line per report; None for no history.
        stage: name of the stage.
        logging_steps: there is a report after every step of the stage that is a multiple of this.
        total: maximum number of steps of the stage; None if unknown.
        settings: settings of the stage for a line of the history; see `stretch_settings`.
        initial: steps of the stage that are already done.
        step: optimizer steps of the whole run that are already done.
        images: images that the whole run has already seen, over all processes.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        history: History | None,
        stage: str,
        *,
        logging_steps: int,
        total: int | None,
        settings: Mapping[str, object] | None = None,
        initial: int = 0,
        step: int = 0,
        images: int = 0,
    ) -> None:
        self.accelerator, self.history, self.stage = accelerator, history, stage
        self.logging_steps, self.total, self.stage_step = max(1, logging_steps), total, initial
        self.run_step, self.images = step, images
        self.bar = tqdm(
            total=total,
            initial=initial,
            desc=stage,
            unit="step",
            disable=not accelerator.is_main_process,
            mininterval=5,
        )
        self._paused_since: float | None = None
        self._restart()
        if settings is not None and history is not None and accelerator.is_main_process:
            with self._despite_full_disk():
                history.begin(step, images, stage, settings)

    def _restart(self) -> None:
        self._table: torch.Tensor | None = None
        self._joint_table: torch.Tensor | None = None
        self._values: dict[str, list[torch.Tensor | float]] = {}
        self._latest: dict[str, float] = {}
        self._skipped_images: int | Callable[[], int] | None = None
        self._steps_before, self._images_before = self.stage_step, self.images
        self._since, self._waited, self._away = time.perf_counter(), 0.0, 0.0
        if self._paused_since is not None:
            self._paused_since = self._since

    @contextlib.contextmanager
    def waiting_for_data(self) -> Iterator[None]:
        """Count the time inside the block as waiting for the next batch."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self._waited += time.perf_counter() - begin

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Exclude the time inside the block (a checkpoint or validation) from the measured time. It may contain a
        report.
        """
        self._paused_since = time.perf_counter()
        try:
            yield
        finally:
            self._settle_pause()
            self._paused_since = None

    def _settle_pause(self) -> None:
        """Add the current pause up to now."""
        if self._paused_since is not None:
            now = time.perf_counter()
            self._away, self._paused_since = self._away + now - self._paused_since, now

    def record(
        self,
        losses: torch.Tensor | None,
        *,
        step: int,
        images: int,
        learning_rate: float,
        joint_losses: torch.Tensor | None = None,
        values: Mapping[str, torch.Tensor | float] | None = None,
        skipped_steps: int | None = None,
        skipped_images: int | Callable[[], int] | None = None,
    ) -> None:
        """Record one optimizer step, and report if a report is due. Otherwise it does not wait for the accelerator.

        Args:
            losses: sum of the step's `loss_table`s on this process, (2, levels, 4).
            step: optimizer steps of the whole run, including this one.
            images: images that the whole run has seen, over all processes.
            learning_rate: learning rate of this step.
            joint_losses: the same sum for images trained on together with clips; reported as "image_loss/…".
            values: further scalars by name, of the same names on all processes; their means over steps and processes
                are reported, without values that are not finite.
            skipped_steps: number skipped so far in the run.
            skipped_images: number skipped so far in the stage, over all processes; or a function that returns it,
                which is called for a report on all processes.
        """
        self._table = _added(self._table, losses)
        self._joint_table = _added(self._joint_table, joint_losses)
        for name, value in (values or {}).items():
            self._values.setdefault(name, []).append(value.detach() if isinstance(value, torch.Tensor) else value)
        self.stage_step, self.run_step, self.images = self.stage_step + 1, step, images
        self._latest = {"learning_rate": learning_rate}
        if skipped_steps is not None:
            self._latest["skipped_steps"] = skipped_steps
        self._skipped_images = skipped_images
        self.bar.update()
        if self.stage_step % self.logging_steps == 0 or self.stage_step == self.total:
            self.report()

    def report(self) -> None:
        """Show and write the means since the last report, if there was a step since. Every process must call it.

        Call it before a checkpoint, so that the history is complete up to the checkpoint's step.
        """
        num_steps = self.stage_step - self._steps_before
        if not num_steps:
            return
        losses = self._reduced(self._table, "loss") | self._reduced(self._joint_table, "image_loss")
        self._settle_pause()
        elapsed = max(time.perf_counter() - self._since - self._away, 1e-9)
        waited = torch.tensor([self._waited / elapsed], device=self.accelerator.device)
        values = {
            **losses,
            **self._means(),
            "images_per_second": (self.images - self._images_before) / elapsed,
            "data_wait_share": float(self.accelerator.reduce(waited, "mean")),
            **self._latest,
        }
        if self._skipped_images is not None:
            counted = self._skipped_images
            values["skipped_images"] = counted() if callable(counted) else counted
        if self.accelerator.is_main_process:
            self._show(values, elapsed / num_steps)
            self.write(values)
        self._restart()

    def _reduced(self, table: torch.Tensor | None, name: str) -> dict[str, float]:
        return {} if table is None else table_values(self.accelerator.reduce(table, "sum"), name)

    def _means(self) -> dict[str, float]:
        """Return the means of the recorded values over steps and processes; those of no finite value are left out."""
        if not self._values:
            return {}
        numbers = [[float(number) for number in entries] for entries in self._values.values()]
        finite = [[number for number in entries if math.isfinite(number)] for entries in numbers]
        sums = torch.tensor([[math.fsum(entries), len(entries)] for entries in finite], device=self.accelerator.device)
        means = zip(self._values, self.accelerator.reduce(sums, "sum").tolist(), strict=True)
        return {name: total / count for name, (total, count) in means if count}

    def write(self, values: Mapping[str, float]) -> None:
        """Send numbers of the current step to the trackers and the history; a full disk is logged, but not fatal."""
        with self._despite_full_disk():
            self.accelerator.log(dict(values), step=self.run_step)
        if self.history is not None:
            with self._despite_full_disk():
                self.history.add(self.run_step, self.images, self.stage, **values)

    @contextlib.contextmanager
    def _despite_full_disk(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            logger.warning(
                "The numbers of step %d could not be written (%s); training continues.", self.run_step, error
            )

    def _show(self, values: Mapping[str, float], seconds_per_step: float) -> None:
        levels = self._table.shape[1] if self._table is not None else 0
        losses = [values.get(f"loss/level_{level}") for level in range(levels)]
        spelled = " ".join("-" if loss is None else f"{loss:.4f}" for loss in losses)
        speed, waited = values["images_per_second"], values["data_wait_share"]
        skipped = _spell_skipped(values)
        self.bar.set_postfix_str(f"loss {spelled}, {speed:.1f} images/s{skipped}", refresh=False)
        end, left = "", ""
        if self.total is not None:
            end, left = f"/{self.total}", f", {_spell_time((self.total - self.stage_step) * seconds_per_step)} left"
        logger.info(
            f"{self.stage} step {self.stage_step}{end}, {self.images} images: loss per level {spelled}, "
            f"{speed:.1f} images/s, lr {values['learning_rate']:.2e}, {waited:.1%} of the time waiting for data"
            f"{skipped}{left}"
        )

    def close(self) -> None:
        """Report the last steps and leave the progress bar in place. Every process must call it."""
        self.report()
        self.bar.close()

    def __enter__(self) -> "Meter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # A process that fails must not wait for the others in a last reduction.
        if kind is None:
            self.report()
        self.bar.close()


def _added(total: torch.Tensor | None, table: torch.Tensor | None) -> torch.Tensor | None:
    if table is None:
        return total
    return table.detach() if total is None else total + table.detach()


def _spell_skipped(values: Mapping[str, float]) -> str:
    """Describe skipped steps and images, if there are any."""
    counts = {what: values.get(f"skipped_{what}", 0) for what in ("steps", "images")}
    return "".join(f", {count:.0f} {what} skipped" for what, count in counts.items() if count)


def _spell_time(seconds: float) -> str:
    return str(datetime.timedelta(seconds=round(seconds)))
