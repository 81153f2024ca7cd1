"""What happens to the cluster around a sweep: its head is lost, nodes are to be taken away."""

from __future__ import annotations

import errno
import os
import socket
import sys
import threading
import time

from orchestrator.mistakes import RunError

HEAD_LOST_S = 30.0
"""For how long a head's port is refused before it is lost: Ray ends a driver without a word after 60 s."""
SILENT_S = 300.0
"""The same where it is not refused and nobody answers: a head may be slow."""
STUCK_S = 10.0
"""How long the driver has to notice, should it be waiting for an answer from the head."""
KNOCK_S = 2.0
"""How often it is tried."""
CONNECT_S = 5.0
"""How long it has to answer."""
DRAIN_POLL_S = 3.0
"""How often the head is asked which nodes are to be taken away."""


class Head:
    """Knocks at the head's port from a thread of its own: a question that the driver asks of a lost head may never return.

    A head that is only busy, or stopped for a while, still has its port open.
    """

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self.address = address
        self._where = host.strip("[]"), int(port)
        self._refused_s = self._silent_s = 0.0
        """For how long, by the knocks that failed in a row: time in which none was tried does not count."""
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
        """False while its port is refused: to ask anything of Ray may then end this process."""
        return not self._refused_s

    def refuse_to_wait(self) -> None:
        """Raises RunError once the head is lost."""
        if self._lost():
            raise HeadLost(self._told())

    def _lost(self, more_s: float = 0.0) -> bool:
        return self._refused_s > HEAD_LOST_S + more_s or self._silent_s > SILENT_S + more_s

    def _told(self) -> str:
        how_long_s = max(self._refused_s, self._silent_s)
        told = f"the head of the Ray cluster at {self.address} has not answered for {how_long_s:.0f} s: its cluster is lost"
        return f"{told}; the same command goes on in another cluster"

    def _knock_on(self) -> None:
        while not self._over.wait(KNOCK_S):
            self._knock()
            if self._lost(STUCK_S):
                self._end()

    def _end(self) -> None:
        """The driver waits for an answer that will never come, and nothing can wake it: it ends here, with the reason."""
        print(f"error: {self._told()}", file=sys.stderr, flush=True)
        os._exit(1)

    def _knock(self) -> None:
        try:
            socket.create_connection(self._where, timeout=CONNECT_S).close()
        except ConnectionRefusedError:
            self._refused_s, self._silent_s = self._refused_s + KNOCK_S, 0.0
        except TimeoutError:
            self._refused_s, self._silent_s = 0.0, self._silent_s + KNOCK_S + CONNECT_S
        except OSError as error:  # it is this machine's: no sockets left, say
            if error.errno in (errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN):
                self._silent_s += KNOCK_S
        else:
            self._refused_s = self._silent_s = 0.0


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
