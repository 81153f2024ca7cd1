"""Ctrl-C at a safe place."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def kept_interrupts() -> Iterator[Callable[[], None]]:
    """Within, Ctrl-C is kept until the function given is called, which raises KeyboardInterrupt; a second one raises at once.

    Raised where it happens to come, it may be in a destructor, and Python goes on as if nothing had been asked. In other threads,
    and where somebody else handles Ctrl-C, nothing is changed.
    """
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGINT) != signal.default_int_handler:
        yield lambda: None
        return
    came: list[int] = []

    def keep(number: int, frame: FrameType | None) -> None:
        if came:
            raise KeyboardInterrupt
        came.append(number)

    def raise_kept() -> None:
        if came:
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, keep)
    try:
        yield raise_kept
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
