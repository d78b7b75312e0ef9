# SPDX-License-Identifier: Apache-2.0
"""The page: its layout, and which event calls which handler."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gradio as gr

from .form import Form
from .handlers import Handlers, Shown
from .limits import Limits
from .served_model import ServedModel
from .tasks import EDIT, TASKS, UPSCALE, Task, tasks_of_all
from .upload_fields import image_field, paint_field

TITLE = "Matryoshka Diffusion Models"
STYLE = Path(__file__).with_name("page.css")
ONE_WORKER = "drawing"
_QUERY_OF_ADDRESS = "() => window.location.search.slice(1)"
# Writes the settings into the address, so that reloading the page or copying the address keeps them.
_LINK_OF_QUERY = """(query) => {
    if (!query) return "";
    const address = new URL(window.location.href);
    address.search = query;
    window.history.replaceState(null, "", address);
    return address.href;
}"""
# Shared by all events that compute next to nothing.
_AT_ONCE: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}


def build_page(models: Mapping[str, ServedModel], limits: Limits) -> tuple[gr.Blocks, Handlers]:
    """Build the page.

    Args:
        models: by name; the first one is selected at first.
        limits: the most that a visitor may ask for.

    Returns:
        The page, ready to launch, and its handlers.
    """
    # Files of the galleries and uploads are deleted an hour after they were written.
    with gr.Blocks(title=TITLE, analytics_enabled=False, fill_width=True, delete_cache=(600, 3600)) as page:
        gr.Markdown(f"# {TITLE}\nOne network draws the image at every resolution at once. Watch all of them grow.")
        with gr.Row(equal_height=False, elem_id="halves"):
            with gr.Column(scale=2, min_width=340):
                form, buttons = _build_form(models, limits)
            with gr.Column(scale=3, min_width=340):
                shown, link = _build_results()
        handlers = Handlers(models, limits, form, shown)
        _connect(page, handlers, buttons, link)
    page.queue(max_size=limits.waiting, default_concurrency_limit=1, api_open=False)
    return page, handlers


def _build_form(models: Mapping[str, ServedModel], limits: Limits) -> tuple[Form, dict[str, Any]]:
    first = next(iter(models.values()))
    fields: dict[str, Any] = {"task": gr.State(first.tasks[0].name)}
    buttons: dict[str, Any] = {"tabs": {}}
    with gr.Tabs(selected=first.tasks[0].name, elem_id="tasks") as fields["tabs"]:
        offered = tasks_of_all([model.tasks for model in models.values()])
        for task in TASKS.values():
            with gr.Tab(task.title, id=task.name, visible=task in offered) as buttons["tabs"][task.name]:
                gr.Markdown(task.explanation)
                fields |= _image_fields(task, limits)
    fields["model"] = gr.Dropdown(list(models), value=first.name, label="Model", elem_id="model")
    fields["label"] = gr.Dropdown([], label="Class", elem_id="label", filterable=True)
    fields["prompt"] = gr.Textbox(
        label="Prompt", elem_id="prompt", max_lines=4, placeholder="red apple, flat icon", autofocus=True
    )
    fields["negative_prompt"] = gr.Textbox(
        label="Negative prompt", elem_id="negative_prompt", info="What guidance leads away from."
    )
    with gr.Row():
        buttons["draw"] = gr.Button("Draw", variant="primary", elem_id="draw")
        buttons["stop"] = gr.Button("Stop", elem_id="stop")
    with gr.Accordion("Settings", open=True, elem_id="settings"):
        fields |= _setting_fields(models, limits)
    return Form(**fields), buttons


def _image_fields(task: Task, limits: Limits) -> dict[str, Any]:
    files = {"label": "Image", "sources": ["upload", "clipboard"], "height": 320, "format": "png"}
    if task == UPSCALE:
        return {"upscale_image": image_field(elem_id="upscale_image", **files)}
    if task == EDIT:
        files |= {"brush": gr.Brush(default_size=24, colors=["#e11d48"], color_mode="fixed"), "transforms": ()}
        most = limits.upload_megapixels * 10**6
        return {
            "edit_image": paint_field(most, elem_id="edit_image", layers=False, **files),
            "strength": gr.Slider(0, 1, 0.8, step=0.01, label="Strength", elem_id="strength"),
        }
    return {}


def _setting_fields(models: Mapping[str, ServedModel], limits: Limits) -> dict[str, Any]:
    most = max(len(model.sides) for model in models.values())
    fields: dict[str, Any] = {}
    fields["level"] = gr.Radio([], label="Stop at level", elem_id="level", info="Larger levels are not computed.")
    with gr.Row():
        fields["steps"] = gr.Number(label=f"Steps (1 to {limits.steps})", elem_id="steps", min_width=100)
        fields["solver"] = gr.Dropdown([], label="Solver", elem_id="solver", min_width=160)
    with gr.Row():
        fields["guidance"] = [
            gr.Number(1, step=0.1, label="Guidance", elem_id=f"guidance_{index}", min_width=100)
            for index in range(most)
        ]
    with gr.Row():
        fields["images"] = gr.Number(1, label=f"Images (1 to {limits.images})", elem_id="images", min_width=100)
        fields["seed"] = gr.Number(0, label="Seed", elem_id="seed", min_width=100)
    fields["new_seed"] = gr.Checkbox(True, label="Choose a new seed for every drawing", elem_id="new_seed")
    return fields


def _build_results() -> tuple[Shown, gr.Textbox]:
    status = gr.HTML(elem_id="status")
    levels = gr.HTML(elem_id="levels")
    query = gr.Textbox(visible="hidden", elem_id="query")
    link = gr.Textbox(
        label="Link to these settings", elem_id="link", interactive=False, buttons=["copy"],
        info="Opens this page with the same settings and seed. An uploaded image is not part of it.",
    )  # fmt: skip
    gallery = gr.Gallery(
        label="Drawn before: click an image to return to it",
        elem_id="history", columns=6, fit_columns=False, height="auto", object_fit="contain", format="png",
        allow_preview=False, buttons=[], visible=False,
    )  # fmt: skip
    # Forgotten a day after the page was last used, or when it is closed.
    history = gr.State([], time_to_live=86400)
    return Shown(status, levels, query, history, gallery), link


def _connect(page: gr.Blocks, handlers: Handlers, buttons: dict[str, Any], link: gr.Textbox) -> None:
    form, shown = handlers.form, handlers.shown
    chosen = {form.task, form.model, form.level}
    for name, tab in buttons["tabs"].items():
        tab.select(functools.partial(handlers.select_task, name), chosen, form.dependents, **_AT_ONCE)
    form.model.input(handlers.select_model, chosen, form.dependents, **_AT_ONCE)
    form.level.input(handlers.select_level, chosen, form.guidance, **_AT_ONCE)
    drawing = gr.on(
        [buttons["draw"].click, form.prompt.submit],
        handlers.draw,
        {*form.fields, shown.history},
        [shown.status, shown.levels, shown.query, shown.history, shown.gallery, form.seed],
        concurrency_limit=1,
        concurrency_id=ONE_WORKER,
        trigger_mode="once",
        show_progress="minimal",
        show_progress_on=[shown.status],
        api_visibility="private",
    )
    # Cancelling takes a drawing out of the queue; the handler stops one that runs.
    buttons["stop"].click(handlers.stop, None, [shown.status], cancels=[drawing], **_AT_ONCE)
    shown.query.change(None, [shown.query], [link], js=_LINK_OF_QUERY, **_AT_ONCE)
    shown.gallery.select(
        handlers.reopen,
        {shown.history},
        [*form.filled, shown.levels, shown.query, shown.status],
        **_AT_ONCE,
    )
    page.load(
        handlers.open_page, [shown.query], [*form.filled, shown.status, shown.levels], js=_QUERY_OF_ADDRESS, **_AT_ONCE
    )
    page.unload(handlers.close_page)
