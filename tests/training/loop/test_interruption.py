# SPDX-License-Identifier: Apache-2.0
import os
import signal
import threading

import pytest
from accelerate import Accelerator

from diffusers_mdm.training.loop.interruption import SIGNALS, Interruption


@pytest.mark.parametrize("number", SIGNALS, ids=[number.name for number in SIGNALS])
def test_a_signal_is_remembered_and_the_second_one_acts(number):
    interruption, accelerator = Interruption(), Accelerator(cpu=True)
    came = []
    before = signal.signal(number, lambda *_: came.append("second"))
    try:
        with interruption.listening():
            assert not interruption.is_wanted(accelerator)
            os.kill(os.getpid(), number)
            assert interruption.is_wanted(accelerator)
            assert interruption.received == number.name
            assert came == []
            os.kill(os.getpid(), number)
            assert came == ["second"]
        assert signal.getsignal(number) is not interruption._remember
    finally:
        signal.signal(number, before)


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="a signal of POSIX systems")
def test_a_signal_that_nohup_ignores_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interruption().listening():
            os.kill(os.getpid(), signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_handlers_are_put_back():
    before = signal.getsignal(signal.SIGTERM)
    with Interruption().listening():
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before


def test_other_threads_leave_signals_alone():
    before, inside = signal.getsignal(signal.SIGTERM), []

    def work():
        with Interruption().listening():
            inside.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert inside == [before]
