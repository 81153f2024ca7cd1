"""What happens to the cluster around a sweep: its head is lost, nodes are to be taken away."""

from __future__ import annotations

import os
import socket
import sys
import threading
import time

from orchestrator.mistakes import RunError

HEAD_LOST_S = 30.0
"""How long the head may be out of reach. Ray ends a driver without a word after 60 s."""
STUCK_S = 10.0
"""How long the driver has to notice, should it be waiting for an answer from the head."""
KNOCK_S = 2.0
"""How often it is tried."""
DRAIN_POLL_S = 3.0
"""How often the head is asked which nodes are to be taken away."""


class Head:
    """Knocks at the head's port from a thread of its own: a question that the driver asks of a lost head may never return."""

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self.address = address
        self._where = host.strip("[]"), int(port)
        self._silent_since_s: float | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._knock_on, name="head", daemon=True)

    def __enter__(self) -> Head:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()

    @property
    def is_there(self) -> bool:
        return self._silent_since_s is None

    @property
    def silent_s(self) -> float:
        since_s = self._silent_since_s
        return 0.0 if since_s is None else time.monotonic() - since_s

    def refuse_to_wait(self) -> None:
        """Raises RunError once the head has been silent for too long."""
        if self.silent_s > HEAD_LOST_S:
            raise HeadLost(self._told())

    def _told(self) -> str:
        told = f"the head of the Ray cluster at {self.address} has not answered for {HEAD_LOST_S:.0f} s: its cluster is lost"
        return f"{told}; the same command goes on in another cluster"

    def _knock_on(self) -> None:
        while not self._over.wait(KNOCK_S):
            if self._knock():
                self._silent_since_s = None
            elif self._silent_since_s is None:
                self._silent_since_s = time.monotonic()
            if self.silent_s > HEAD_LOST_S + STUCK_S:
                self._end()

    def _end(self) -> None:
        """The driver waits for an answer that will never come, and nothing can wake it: it ends here, with the reason."""
        print(f"error: {self._told()}", file=sys.stderr, flush=True)
        os._exit(1)

    def _knock(self) -> bool:
        try:
            socket.create_connection(self._where, timeout=KNOCK_S).close()
        except OSError:
            return False
        return True


class HeadLost(RunError):
    """Nothing can be asked of the cluster any more, not even to end."""


class Drains:
    """Nodes that are to be taken away, as ``ray drain-node`` or an autoscaler told the head."""

    def __init__(self) -> None:
        self._asked_s = 0.0

    def look(self) -> dict[str, float | None]:
        """Seconds left to each node that is to go, None where nobody said. Empty between two questions."""
        if time.monotonic() < self._asked_s + DRAIN_POLL_S:
            return {}
        self._asked_s = time.monotonic()
        return {node: until_ms / 1000 - time.time() if until_ms else None for node, until_ms in draining_nodes().items()}


def draining_nodes() -> dict[str, int]:
    """Milliseconds since the epoch at which each draining node ends, by its id; 0: nobody said."""
    from ray._private.state import state

    return dict(state.get_draining_nodes())
