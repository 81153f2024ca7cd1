"""Ctrl-C is kept until it is asked for, and no longer."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from orchestrator.interrupts import interrupting_sigterm, kept_interrupts


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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_nobody_asked_for_is_passed_on_at_the_end(number: signal.Signals) -> None:
    with interrupting_sigterm(), pytest.raises(KeyboardInterrupt), kept_interrupts():
        os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_who_has_nothing_to_put_in_order_asks_for_either(number: signal.Signals) -> None:
    with kept_interrupts() as kept:
        kept.raise_any()
        os.kill(os.getpid(), number)
        with pytest.raises(KeyboardInterrupt):
            kept.raise_any()


def test_sigterm_interrupts_once_also_after_somebody_took_it() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with interrupting_sigterm() as take:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        take()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before
