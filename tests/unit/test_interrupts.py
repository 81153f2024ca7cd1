"""Ctrl-C is kept until it is asked for, and no longer."""

from __future__ import annotations

import os
import signal

import pytest

from orchestrator.interrupts import kept_interrupts


def press() -> None:
    os.kill(os.getpid(), signal.SIGINT)


class Fragile:
    """Where a KeyboardInterrupt would be swallowed."""

    def __del__(self) -> None:
        press()


def test_an_interrupt_that_comes_in_a_destructor_is_raised_where_it_is_asked_for() -> None:
    with kept_interrupts() as raise_kept:
        raise_kept()
        Fragile()
        with pytest.raises(KeyboardInterrupt):
            raise_kept()


def test_a_second_interrupt_does_not_wait() -> None:
    with kept_interrupts():
        press()
        with pytest.raises(KeyboardInterrupt):
            press()


def test_afterwards_everything_is_as_before() -> None:
    before = signal.getsignal(signal.SIGINT)
    with kept_interrupts():
        assert signal.getsignal(signal.SIGINT) is not before
    assert signal.getsignal(signal.SIGINT) is before


def test_somebody_elses_handling_stays() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with kept_interrupts() as raise_kept:
            press()
            raise_kept()
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
