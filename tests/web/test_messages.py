# SPDX-License-Identifier: Apache-2.0
"""Errors are sentences: expected ones as they are, others without the inside of the server."""

import logging

import torch

from diffusers_mdm.web.messages import explain, failure, note, step_note


def test_texts_are_escaped():
    for show in (note, failure):
        assert "<b>" not in show("<b>")
        assert "&lt;b&gt;" in show("<b>")


def test_errors_are_announced_to_screen_readers():
    assert 'role="alert"' in failure("No.")
    assert 'role="status"' in note("Yes.")
    assert 'value="3" max="4"' in step_note(3, 4)


def test_expected_errors_are_shown_as_they_are():
    assert explain(ValueError("The seed is -1.")) == "The seed is -1."
    assert "fewer images" in explain(torch.OutOfMemoryError("CUDA out of memory"))


def test_unexpected_errors_are_logged_and_not_shown(caplog):
    with caplog.at_level(logging.ERROR):
        text = explain(KeyError("secret"))
    assert "secret" not in text
    assert "KeyError" in text
    assert "secret" in caplog.text
