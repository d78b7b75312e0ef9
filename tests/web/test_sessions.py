# SPDX-License-Identifier: Apache-2.0
"""A visitor stops their own drawings, and nothing is kept of those that ended."""

import pytest

from diffusers_mdm.web.sessions import Sessions


def test_only_the_own_drawing_is_stopped():
    sessions = Sessions()
    with sessions.drawing("one") as first, sessions.drawing("two") as second:
        assert sessions.stop("one")
        assert first.is_set()
        assert not second.is_set()
        assert len(sessions) == 2


def test_two_drawings_of_one_page_are_both_stopped():
    sessions = Sessions()
    with sessions.drawing("one") as first, sessions.drawing("one") as second:
        assert sessions.stop("one")
        assert first.is_set()
        assert second.is_set()


def test_nothing_is_kept_of_drawings_that_ended():
    sessions = Sessions()
    with pytest.raises(ArithmeticError), sessions.drawing("one") as stop:
        raise ArithmeticError
    assert stop.is_set()
    assert len(sessions) == 0
    assert not sessions.stop("one")
    with sessions.drawing("one") as later:
        assert not later.is_set()
