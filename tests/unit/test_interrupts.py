"""Ctrl-C is kept until it is asked for, and no longer."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from orchestrator.interrupts import kept_interrupts


@pytest.fixture(autouse=True)
def handled() -> Iterator[None]:
    """Ctrl-C is Python's own, whoever runs the tests: parallel ones ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def press() -> None:
    os.kill(os.getpid(), signal.SIGINT)


class Fragile:
    """Where a KeyboardInterrupt would be swallowed."""

    def __del__(self) -> None:
        press()


def test_an_interrupt_that_comes_in_a_destructor_is_raised_where_it_is_asked_for() -> None:
    with kept_interrupts() as kept:
        kept.raise_kept()
        Fragile()
        with pytest.raises(KeyboardInterrupt):
            kept.raise_kept()


def test_a_second_interrupt_does_not_wait() -> None:
    with kept_interrupts():
        press()
        with pytest.raises(KeyboardInterrupt):
            press()


def test_a_notice_that_the_machine_goes_raises_nothing_however_often_it_comes() -> None:
    with kept_interrupts() as kept:
        assert not kept.ending
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
        assert kept.ending
        kept.raise_kept()


def test_afterwards_everything_is_as_before() -> None:
    signals = signal.SIGINT, signal.SIGTERM
    before = [signal.getsignal(number) for number in signals]
    with kept_interrupts():
        assert all(signal.getsignal(number) is not was for number, was in zip(signals, before, strict=True))
    assert [signal.getsignal(number) for number in signals] == before


def test_somebody_elses_handling_stays() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with kept_interrupts() as kept:
            press()
            kept.raise_kept()
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
