"""Ctrl-C and SIGTERM at a safe place."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType


@dataclass
class Interrupts:
    """What came. ``ending``: SIGTERM, the machine is to be taken away and this process may still put things in order."""

    ending: bool = False
    _pressed: bool = False

    def raise_kept(self) -> None:
        """Raises KeyboardInterrupt if Ctrl-C came."""
        if self._pressed:
            raise KeyboardInterrupt

    def press(self, number: int, frame: FrameType | None) -> None:
        """A second one raises at once."""
        self.raise_kept()
        self._pressed = True

    def end(self, number: int, frame: FrameType | None) -> None:
        self.ending = True


@contextmanager
def kept_interrupts() -> Iterator[Interrupts]:
    """Within, Ctrl-C and SIGTERM are kept until they are asked for; a second Ctrl-C raises KeyboardInterrupt at once.

    Raised where it happens to come, it may be in a destructor, and Python goes on as if nothing had been asked. In other threads
    nothing is changed, nor is Ctrl-C where somebody else handles it.
    """
    kept = Interrupts()
    if threading.current_thread() is not threading.main_thread():
        yield kept
        return
    handlers = {signal.SIGTERM: kept.end}
    if signal.getsignal(signal.SIGINT) == signal.default_int_handler:
        handlers[signal.SIGINT] = kept.press
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield kept
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
