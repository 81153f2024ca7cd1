"""Whether a scheduler's books add up, told from the entries, the workers and the queues against each other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from orchestrator.books import BOUNDARY, Books, State


def check(books: Books, max_attempts: int) -> None:
    """Raises RuntimeError with every entry that does not add up. Looks at everything: for tests and for doubts."""
    mistakes = [
        *_item_mistakes(books, max_attempts),
        *_worker_mistakes(books),
        *_queue_mistakes(books),
        *books.pool.mistakes(),
    ]
    if mistakes:
        raise RuntimeError("the scheduler's books do not balance:\n" + "\n".join(mistakes))


def _item_mistakes(books: Books, max_attempts: int) -> Iterator[str]:
    counted = Counter(entry.state for entry in books.items.values())
    counted.update(State.FINISHED if finished else State.GIVEN_UP for finished in books.closed.values())
    if counted != +books._states:
        yield f"the states are counted as {books.states()}, the entries say {dict(counted)}"
    undecided = Counter(entry.item.arm for entry in books.items.values() if entry.decision is None)
    if undecided != +books.undecided:
        yield f"{dict(books.undecided)} items are counted as undecided, the entries say {dict(undecided)}"
    for entry in books.items.values():
        if (entry.worker is not None) != (entry.state in BOUNDARY):
            yield books.tell(entry, f"is {entry.state} but held by {entry.worker}")
        if not 1 <= entry.num_charged <= max_attempts:
            yield books.tell(entry, f"is at attempt {entry.attempt} of {max_attempts}, {entry.pardoned} of them pardoned")


def _worker_mistakes(books: Books) -> Iterator[str]:
    holders = {who.item_key: name for name, who in books.workers.items() if who.item_key is not None}
    if len(holders) != sum(who.item_key is not None for who in books.workers.values()):
        yield f"two workers do one item: {books.workers}"
    if +books.staff != Counter(who.kind for who in books.workers.values() if not who.leaving):
        yield f"{dict(books.staff)} workers counted, there are {books.workers}"
    if {name for names in books.idle.values() for name in names} != {
        n for n, who in books.workers.items() if who.item_key is None
    }:
        yield f"{books.idle} are counted as idle, the workers say {books.workers}"
    for pod in books.pods.values():
        holders.update(dict.fromkeys(pod.held, pod.pod))
        if any(books.items[key].slice != piece for key, piece in pod.held.items()):
            yield f"{pod.pod} and its items disagree on who holds what: {pod.held}"
    for key, entry in books.items.items():
        if holders.get(key) != entry.worker:
            yield books.tell(entry, f"thinks {entry.worker} has it, the workers say {holders.get(key)}")


def _queue_mistakes(books: Books) -> Iterator[str]:
    for boundary, queue in books.queues.items():
        waiting = {key for key, entry in books.items.items() if entry.state == boundary}
        if set(queue) != waiting or sum(queue.counts.values()) != len(waiting):
            yield f"queue {boundary} holds {sorted(queue)}, its items are {sorted(waiting)}"
    for key in books.pool.promises:
        if key not in books.queues[State.SKETCHED] and key not in books.queues[State.REFINED]:
            yield f"{key} was promised {books.pool.promises[key]} and does not wait"
