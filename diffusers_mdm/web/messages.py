# SPDX-License-Identifier: Apache-2.0
"""The line on the page that says what is going on."""

from __future__ import annotations

import html
import logging

import torch

logger = logging.getLogger(__name__)


def note(text: str) -> str:
    """Return a message as HTML."""
    return f'<p class="mdm-status" role="status">{html.escape(text)}</p>'


def step_note(step: int, steps: int) -> str:
    """Return a message with a bar, while a drawing runs."""
    bar = f'<progress value="{step}" max="{steps}"></progress>'
    return f'<p class="mdm-status" role="status">Step {step} of {steps} {bar}</p>'


def failure(text: str) -> str:
    """Return the message of an error as HTML."""
    return f'<p class="mdm-status mdm-failure" role="alert">{html.escape(text)}</p>'


def explain(error: Exception) -> str:
    """Return an error as a sentence for the visitor; the log of the server has the rest of unexpected ones.

    Args:
        error: what was raised while drawing.
    """
    if isinstance(error, torch.OutOfMemoryError):
        return (
            "The server has not enough memory for this drawing. Draw fewer images at once, or stop at a smaller level."
        )
    if isinstance(error, (ValueError, TypeError)):
        return str(error)
    logger.error("A drawing failed", exc_info=error)
    return f"The drawing failed because of a mistake in the server ({type(error).__name__}); its log says more."
