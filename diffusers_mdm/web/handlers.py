# SPDX-License-Identifier: Apache-2.0
"""What happens when a visitor presses a button: fields in, fields and images out. Nothing of one visitor is kept
where another one's request could reach it.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import gradio as gr
from PIL import Image

from .drawings import GivenImage, Progress, draw
from .form import Form, Updates, image_of
from .level_views import levels_html
from .limits import Limits
from .messages import explain, failure, note, step_note
from .permalinks import from_query, to_query
from .served_model import ServedModel
from .sessions import Sessions
from .settings import Settings
from .settings_checks import HIGHEST_SEED, checked
from .tasks import EDIT, TASKS, UPSCALE
from .uploads import read_edit, read_upload

THUMBNAIL_SIDE = 128  # pixels
BLANK = Settings(task="", model="")


@dataclass
class Shown:
    """The parts of the page that show results.

    Attributes:
        status: the line that says what is going on.
        levels: all levels side by side.
        query: the settings of the shown drawing, for the link.
        history: the finished drawings of this page, newest first, kept by the server for each open page.
        gallery: their images.
    """

    status: gr.HTML
    levels: gr.HTML
    query: gr.Textbox
    history: gr.State
    gallery: gr.Gallery


@dataclass(frozen=True)
class Drawn:
    """A finished drawing in the history of a page.

    Attributes:
        settings: what it was drawn with.
        progress: its levels.
    """

    settings: Settings
    progress: Progress


class Handlers:
    """The answers to the events of the page.

    Args:
        models: by name; the first one is shown at first.
        limits: the most that a visitor may ask for.
        form: the fields.
        shown: the results.
    """

    def __init__(self, models: Mapping[str, ServedModel], limits: Limits, form: Form, shown: Shown) -> None:
        self.models = models
        self.limits = limits
        self.form = form
        self.shown = shown
        self.sessions = Sessions()

    def model_for(self, task: str, name: str | None) -> ServedModel:
        """Return the named model if it can do a task, else the first that can."""
        able = {key: model for key, model in self.models.items() if TASKS[task] in model.tasks}
        return able.get(name or "", next(iter(able.values())))

    def select_task(self, task: str, values: dict[Any, Any]) -> Updates:
        """Show the models and defaults of a task, unless it is the one that is shown."""
        if values[self.form.task] == task:
            return {self.form.task: task}
        return self.form.follow(task, self.model_for(task, values[self.form.model]), self.models)

    def select_model(self, values: dict[Any, Any]) -> Updates:
        """Show the abilities and defaults of a model."""
        task = values[self.form.task]
        return self.form.follow(task, self.model_for(task, values[self.form.model]), self.models)

    def select_level(self, values: dict[Any, Any]) -> Updates:
        """Show the guidance sliders of the levels that are drawn."""
        level = values[self.form.level]
        model = self.model_for(values[self.form.task], values[self.form.model])
        return self.form.open_to(model, max(model.levels(values[self.form.task])) if level is None else int(level))

    def open_page(self, query: str) -> Updates:
        """Fill the fields from the address of the page."""
        first = next(iter(self.models.values()))
        try:
            settings = from_query(query or "")
            task = settings.setdefault("task", first.tasks[0].name)
            if not any(TASKS.get(task) in model.tasks for model in self.models.values()):
                raise ValueError(f"The link is for {task!r}, which no model of this page can do.")
        except ValueError as error:
            start = {"task": first.tasks[0].name}
            return {**self.form.fill(start, first, self.models), self.shown.status: failure(str(error))}
        wanted = settings.pop("model", None)
        model = self.model_for(task, wanted)
        missing = wanted is not None and wanted != model.name
        message = "Say what to draw, and watch every level grow."
        if missing:
            message = f"The link names the model {wanted}, which is not here; {model.name} is selected instead."
        empty = Drawn(replace(BLANK, task=task, level=max(model.levels(task))), Progress(0, 0, []))
        return {
            **self.form.fill(settings, model, self.models),
            self.shown.status: note(message),
            self.shown.levels: self.view(model, empty),
        }

    def read(self, values: dict[Any, Any]) -> tuple[ServedModel, Settings, GivenImage | None]:
        """Check what the fields say.

        Args:
            values: by field.

        Raises:
            ValueError: a sentence for the visitor.
        """
        form = self.form
        settings = form.read(values)
        if values[form.new_seed]:
            settings = replace(settings, seed=secrets.randbelow(HIGHEST_SEED + 1))
        if settings.model not in self.models:
            raise ValueError(f"There is no model {settings.model!r}; choose one of {', '.join(self.models)}.")
        model = self.models[settings.model]
        settings = checked(settings, model, self.limits)
        uploaded = image_of(settings.task, values, form)
        given = None
        if settings.task == UPSCALE.name:
            given = read_upload(uploaded, self.limits)
        elif settings.task == EDIT.name:
            given = read_edit(uploaded, self.limits)
        return model, settings, given

    def draw(self, values: dict[Any, Any], request: gr.Request) -> Iterator[Updates]:
        """Draw what the fields say, and show all levels after every step.

        Args:
            values: by field.
            request: of the visitor.
        """
        form, shown = self.form, self.shown
        try:
            model, settings, given = self.read(values)
        except ValueError as error:
            yield {shown.status: failure(str(error))}
            return
        yield {shown.status: note("The drawing begins."), form.seed: settings.seed}
        is_finished = False
        try:
            with self.sessions.drawing(str(request.session_hash)) as stop:
                for progress in draw(model, settings, stop, given):
                    is_finished = progress.is_finished
                    yield self.show(model, settings, progress, values[shown.history])
            if not is_finished:
                yield {shown.status: note("Stopped.")}
        except Exception as error:  # noqa: BLE001  every mistake becomes a sentence, and unexpected ones are logged
            yield {shown.status: failure(explain(error))}

    def show(self, model: ServedModel, settings: Settings, progress: Progress, history: list[Drawn]) -> Updates:
        """Return what the page shows at a step, or at the end, when the drawing is added to the history."""
        shown = self.shown
        if not progress.is_finished:
            view = self.view(model, Drawn(settings, progress))
            return {shown.status: step_note(progress.step, progress.steps), shown.levels: view}
        drawn = Drawn(settings, progress)
        kept = [drawn, *history][: self.limits.history]
        return {
            shown.status: note(f"Done, with seed {settings.seed}."),
            shown.levels: self.view(model, drawn),
            shown.query: to_query(settings),
            shown.history: kept,
            shown.gallery: gr.update(value=[thumbnail(entry) for entry in kept], visible=True),
        }

    def view(self, model: ServedModel, drawn: Drawn) -> str:
        """Return the levels of a drawing as HTML."""
        settings, progress = drawn.settings, drawn.progress
        names = {index: name for index, name in model.level_names.items() if index <= settings.level}
        query = to_query(settings) if progress.is_finished else None
        return levels_html(progress, names, caption(settings), query)

    def stop(self, request: gr.Request) -> Updates:
        """Stop the drawing of this page, and of no other."""
        running = self.sessions.stop(str(request.session_hash))
        return {self.shown.status: note("Stopped." if running else "There is no drawing to stop.")}

    def close_page(self, request: gr.Request) -> None:
        """Stop the drawing of a page that was closed."""
        self.sessions.stop(str(request.session_hash))

    def reopen(self, values: dict[Any, Any], event: gr.SelectData) -> Updates:
        """Show a drawing of the history again, with its settings in the fields."""
        drawn = values[self.shown.history][event.index]
        model = self.models[drawn.settings.model]
        return {
            **self.form.fill(asdict(drawn.settings), model, self.models),
            self.shown.levels: self.view(model, drawn),
            self.shown.query: to_query(drawn.settings),
            self.shown.status: note("An earlier drawing, with its settings in the form."),
        }


def thumbnail(drawn: Drawn) -> tuple[Image.Image, str]:
    """Return a small image of a drawing and its caption."""
    image = drawn.progress.levels[-1][0][0].copy()
    image.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    return image, caption(drawn.settings)


def caption(settings: Settings) -> str:
    """Return what a drawing shows, in a few words."""
    words = ", ".join(part for part in (settings.label, settings.prompt) if part)
    return words or TASKS[settings.task].title
