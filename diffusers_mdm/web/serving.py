# SPDX-License-Identifier: Apache-2.0
"""Starting the server of the page: on this machine only by default, and without a word to anybody else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gradio as gr

from .handlers import Handlers
from .limits import Limits
from .page import STYLE, build_page
from .served_model import ServedModel

LOOPBACK = "127.0.0.1"


def theme() -> gr.themes.Base:
    """Return a theme with fonts of the visitor's system, so that none are fetched."""
    return gr.themes.Default(
        primary_hue="rose", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
    )


def serve(
    models: Mapping[str, ServedModel],
    limits: Limits | None = None,
    host: str = LOOPBACK,
    port: int | None = None,
    **options: Any,
) -> tuple[gr.Blocks, Handlers]:
    """Start the server.

    Args:
        models: by name.
        limits: the most that a visitor may ask for.
        host: the address to listen at; by default only this machine can connect.
        port: None for the first free one from 7860.
        options: of `gradio.Blocks.launch`, such as `prevent_thread_lock=True`.

    Returns:
        The page and its handlers.
    """
    limits = limits or Limits()
    page, handlers = build_page(models, limits)
    page.launch(
        server_name=host,
        server_port=port,
        share=False,
        max_file_size=f"{limits.upload_megabytes}mb",
        footer_links=[],
        run_history=False,
        enable_monitoring=False,
        mcp_server=False,
        ssr_mode=False,
        theme=theme(),
        css=STYLE.read_text(encoding="utf-8"),
        **options,
    )
    return page, handlers
