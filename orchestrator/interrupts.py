"""Ctrl-C and SIGTERM at a safe place."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType


@dataclass
class Interrupts:
    """What came. ``ending``: SIGTERM, the machine is to be taken away and this process may still put things in order."""

    ending: bool = False
    pressed: bool = False
    """Ctrl-C, and nobody has asked for it yet."""

    def raise_kept(self) -> None:
        """Raises KeyboardInterrupt if Ctrl-C came."""
        if self.pressed:
            self.pressed = False
            raise KeyboardInterrupt

    def raise_any(self) -> None:
        """Raises KeyboardInterrupt if either came, for who has nothing to put in order."""
        self.pressed |= self.ending
        self.raise_kept()

    def press(self, number: int, frame: FrameType | None) -> None:
        """A second one raises at once."""
        self.raise_kept()
        self.pressed = True

    def end(self, number: int, frame: FrameType | None) -> None:
        self.ending = True


@contextmanager
def kept_interrupts() -> Iterator[Interrupts]:
    """Within, Ctrl-C and SIGTERM are kept until they are asked for; a second Ctrl-C raises KeyboardInterrupt at once.

    Raised where it happens to come, it may be in a destructor, and Python goes on as if nothing had been asked. What nobody asked
    for until an end without an error is then passed on to the handler that was there before. In other threads nothing is
    changed, nor is Ctrl-C where somebody else handles it.
    """
    kept = Interrupts()
    if threading.current_thread() is not threading.main_thread():
        yield kept
        return
    handlers: dict[int, Callable[[int, FrameType | None], None]] = {signal.SIGTERM: kept.end}
    if signal.getsignal(signal.SIGINT) == signal.default_int_handler:
        handlers[signal.SIGINT] = kept.press
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield kept
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    for number, came in ((signal.SIGTERM, kept.ending), (signal.SIGINT, kept.pressed)):
        if came and callable(handler := before[number]):
            handler(number, None)


@contextmanager
def interrupting_sigterm() -> Iterator[Callable[[], None]]:
    """Within, SIGTERM raises KeyboardInterrupt as Ctrl-C does, once: further ones leave the putting in order alone.

    Ray takes SIGTERM for itself when it is started or joined, and gives it to nobody when it is left: what is yielded takes it
    back. In other threads nothing is changed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    came = False

    def raise_once(number: int, frame: FrameType | None) -> None:
        nonlocal came
        if not came:
            came = True
            raise KeyboardInterrupt

    def take() -> None:
        signal.signal(signal.SIGTERM, raise_once)

    before = signal.getsignal(signal.SIGTERM)
    take()
    try:
        yield take
    finally:
        signal.signal(signal.SIGTERM, before)
