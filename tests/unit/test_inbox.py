"""What is awaited of Ray, with futures that a test completes."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from typing import Any

from orchestrator.inbox import Inbox


class Ref:
    def __init__(self) -> None:
        self.made: Future[Any] = Future()

    def future(self) -> Future[Any]:
        return self.made


def expect(inbox: Inbox, unit: str, seen: list[Any]) -> Future[Any]:
    ref = Ref()
    inbox.expect(ref, unit, seen.append)
    return ref.made


def collect(inbox: Inbox) -> int:
    num = 0
    for then, outcome in inbox.collect(0.01):
        then(outcome)
        num += 1
    return num


def test_outcomes_come_in_the_order_in_which_they_were_there_and_errors_are_outcomes_too() -> None:
    inbox, seen = Inbox(), list[Any]()
    first, second, third = (expect(inbox, "pod-0", seen) for _ in range(3))
    wrong = ValueError("no")
    third.set_result("c")
    first.set_exception(wrong)
    assert collect(inbox) == 2
    assert seen == ["c", wrong]
    second.set_result("b")
    assert collect(inbox) == 1
    assert collect(inbox) == 0


def test_nothing_more_comes_from_a_unit_that_is_forgotten_not_even_what_is_there_already() -> None:
    inbox, seen = Inbox(), list[Any]()
    lost, kept = expect(inbox, "pod-0", seen), expect(inbox, "pod-1", seen)
    lost.set_result("lost")
    inbox.forget("pod-0")
    kept.set_result("kept")
    collect(inbox)
    assert seen == ["kept"]


def test_what_one_outcome_forgets_is_not_given_in_the_same_turn() -> None:
    inbox, seen = Inbox(), list[Any]()
    dies = Ref()
    inbox.expect(dies, "pod-0", lambda outcome: inbox.forget("pod-0"))
    late = expect(inbox, "pod-0", seen)
    dies.made.set_result(None)
    late.set_result("late")
    collect(inbox)
    assert seen == []


def test_an_event_does_not_look_at_what_else_is_awaited() -> None:
    class Untouchable(Future[Any]):
        def exception(self, timeout: float | None = None) -> BaseException | None:
            raise AssertionError("looked at")

    inbox, seen = Inbox(), list[Any]()
    for _ in range(1000):
        ref = Ref()
        ref.made = Untouchable()
        inbox.expect(ref, "pod-0", seen.append)
    expect(inbox, "pod-1", seen).set_result("there")
    assert collect(inbox) == 1
    assert seen == ["there"]


def test_closing_waits_for_what_ray_still_holds() -> None:
    inbox, seen = Inbox(), list[Any]()
    held = expect(inbox, "pod-0", seen)
    timer = threading.Timer(0.2, held.set_result, ["gone"])
    timer.start()
    inbox.close(60.0)
    assert held.done()
    assert collect(inbox) == 0
    assert seen == []
