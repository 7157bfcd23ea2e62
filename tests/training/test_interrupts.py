"""Ctrl-C is held back until a step is whole, and never lost."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from compressm.training.interrupts import held_interrupts


def press_ctrl_c() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def test_one_interrupt_waits_for_the_end() -> None:
    reached = []
    handler = signal.getsignal(signal.SIGINT)

    def work() -> None:
        with held_interrupts():
            press_ctrl_c()
            reached.append(True)

    with pytest.raises(KeyboardInterrupt):
        work()
    assert reached == [True]
    assert signal.getsignal(signal.SIGINT) is handler


def test_a_second_interrupt_is_delivered_at_once() -> None:
    reached = []

    def work() -> None:
        with held_interrupts():
            press_ctrl_c()
            reached.append(1)
            press_ctrl_c()
            reached.append(2)

    with pytest.raises(KeyboardInterrupt):
        work()
    assert reached == [1]


def test_the_users_own_handler_hears_of_it() -> None:
    heard = []
    before = signal.signal(signal.SIGINT, lambda number, frame: heard.append(number))
    try:
        with held_interrupts():
            press_ctrl_c()
            assert heard == []
        assert heard == [signal.SIGINT]
        with held_interrupts():
            pass
        assert len(heard) == 1
    finally:
        signal.signal(signal.SIGINT, before)


def test_errors_pass_and_other_threads_are_left_alone() -> None:
    def fail() -> None:
        with held_interrupts():
            raise ValueError("x")

    with pytest.raises(ValueError, match="x"):
        fail()
    done = []

    def work() -> None:
        with held_interrupts():
            done.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [True]
