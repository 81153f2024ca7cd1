"""Follows a submitted job to its end, over connections that drop and heads whose dashboard restarts."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, Protocol

from orchestrator.head import Dropped
from orchestrator.mistakes import RunError
from orchestrator.submission import ENDED

QUIET_S = 60.0
"""A log without a line for so long is asked for anew: a connection may be gone without anybody saying so."""
LOST_S = 900.0
"""How long a head may be out of reach; a head that is replaced knows nothing of the job any more."""
RETRY_S = 2.0

Write = Callable[[str], None]


class LogLost(Exception):
    """The log does not come; the head may still answer."""


class Followed(Protocol):
    """What is asked of :class:`orchestrator.head.Head`."""

    address: str

    def job(self, job_id: str) -> Any: ...

    def log(self, job_id: str) -> AsyncIterator[str]: ...


class Follower:
    """Writes a job's log once, whatever happens to the connection: a new one begins with what was written already."""

    def __init__(self, head: Followed, job_id: str, write: Write, tell: Write) -> None:
        self.head, self.job_id = head, job_id
        self.write, self.tell = write, tell
        self.num_written = 0
        """Characters of the log."""
        self._lost_since_s: float | None = None

    def follow(self) -> Any:
        """Ray's details of the ended job. Raises RunError when the head, or the job, is lost; KeyboardInterrupt passes."""
        while True:
            try:
                before = self.head.job(self.job_id)
                asyncio.run(self._read())
                job = self.head.job(self.job_id)
            except LogLost as error:
                if before.status in ENDED:
                    self.tell(f"the rest of the log cannot be read ({error})")
                    return before
                self._wait(str(error))
            except Dropped as error:
                self._wait(str(error))
            else:
                self._found()
                if job.status in ENDED:
                    return job
                time.sleep(RETRY_S)

    async def _read(self) -> None:
        """The log until it ends, or until nothing came for a while. Raises LogLost when the connection goes."""
        import aiohttp

        position, pieces = 0, self.head.log(self.job_id)
        try:
            while (piece := await asyncio.wait_for(anext(pieces, None), QUIET_S)) is not None:
                self._found()
                position += len(piece)
                if position > self.num_written:
                    self.write(piece[len(piece) - (position - self.num_written) :])
                    self.num_written = position
        except TimeoutError:
            return  # the job may only be slow
        except (aiohttp.ClientError, OSError, RuntimeError) as error:  # Ray raises RuntimeError for a socket that closes
            raise LogLost(f"{type(error).__name__}: {error}") from error

    def _found(self) -> None:
        if self._lost_since_s is not None:
            self.tell("connected again")
        self._lost_since_s = None

    def _wait(self, reason: str) -> None:
        if self._lost_since_s is None:
            self._lost_since_s = time.monotonic()
            self.tell(f"connection to {self.head.address} lost ({reason}); the job goes on, and so do I when it is back")
        elif time.monotonic() - self._lost_since_s > LOST_S:
            raise RunError(f"{self.head.address} has not answered for {LOST_S:.0f} s; the same command goes on from here")
        time.sleep(RETRY_S)
