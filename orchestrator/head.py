"""The head of a Ray cluster as its dashboard shows it: jobs and state over HTTP, with a token where one is asked for."""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, TypeVar

from orchestrator.cluster import missing_environment
from orchestrator.mistakes import ConfigError, RunError, without_password
from orchestrator.submission import Submission

T = TypeVar("T")

REDIRECTS = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
"""Ray's clients go where these say, whatever address they are given."""
TIMEOUT_S = (10.0, 120.0)
"""To connect, and between two bytes: a connection that hangs is a dropped one. Uploads are longer, byte by byte."""
MAX_ROWS = 10_000
"""What the state API returns at most. Actors and groups beyond it are merely not seen; jobs must be told whole."""
DEFAULT_ADDRESS = "http://127.0.0.1:8265"


class Dropped(Exception):
    """The head does not answer now; it may later."""


def address_of(given: str | None) -> str:
    """The dashboard's address: as given, else as the environment has it, else Ray's usual one. Raises ConfigError."""
    found = given or os.environ.get("RAY_API_SERVER_ADDRESS") or DEFAULT_ADDRESS
    if not re.fullmatch(r"https?://[^/\s@]+/?", found):
        rule = "must be the dashboard's, such as http://127.0.0.1:8265 (`ray dashboard` forwards it), without a user or password"
        raise ConfigError([f"--address {without_password(found)!r} {rule}"])
    return found.rstrip("/")


class Head:
    """Every method raises Dropped while the head cannot be reached, and RunError for what waiting does not mend."""

    def __init__(self, address: str) -> None:
        os.environ.update(missing_environment(os.environ, joining=True))  # read by Ray when it is imported
        self.address = address
        with _aimed():
            self._jobs = self._ask(lambda: _client(address))

    def _ask(self, question: Callable[[], T]) -> T:
        import ray.exceptions
        import requests

        try:
            return question()
        except RunError:  # a RuntimeError too
            raise
        except ray.exceptions.AuthenticationError as error:
            raise RunError(no_token(self.address)) from error
        except (requests.RequestException, OSError) as error:
            raise Dropped(without_password(f"{type(error).__name__}: {error}")) from error
        except RuntimeError as error:
            status = re.search(r"status code (\d+)", str(error))
            if status is None or status[1].startswith("5"):
                raise Dropped(_first_line(error)) from error
            raise RunError(f"{self.address}: {_first_line(error)}") from error

    def submit(self, job: Submission) -> str:
        """The id of the job, whose files are sent with it."""

        def send() -> str:
            return str(
                self._jobs.submit_job(
                    entrypoint=job.entrypoint, submission_id=job.job_id, runtime_env=job.runtime_env, metadata=job.metadata
                )
            )

        return self._ask(send)

    def run(self, job_id: str, entrypoint: str) -> str:
        """A job that needs no files."""
        return self._ask(lambda: str(self._jobs.submit_job(entrypoint=entrypoint, submission_id=job_id)))

    def job(self, job_id: str) -> Any:
        """Ray's details of a job. Raises RunError when the head does not know it."""
        return self._ask(lambda: self._jobs.get_job_info(job_id))

    def jobs(self) -> list[Any]:
        """Submitted jobs, the latest first; drivers that nobody submitted are not among them."""
        found = [job for job in self._ask(self._jobs.list_jobs) if job.submission_id]
        return sorted(found, key=lambda job: job.start_time or 0, reverse=True)

    def stop(self, job_id: str) -> bool:
        return bool(self._ask(lambda: self._jobs.stop_job(job_id)))

    def log(self, job_id: str) -> AsyncIterator[str]:
        """The whole log in pieces, from its beginning, until the job ends. Raises what aiohttp raises."""
        found: AsyncIterator[str] = self._jobs.tail_job_logs(job_id)
        return found

    def rows(self, what: str) -> list[dict[str, Any]]:
        """State of ``"actors"``, ``"placement_groups"``, ``"nodes"`` or ``"jobs"``, of everybody on the cluster.

        Raises RunError for jobs of which some are missing: what those hold would look left behind.
        """
        from ray.util.state import StateApiClient
        from ray.util.state.common import ListApiOptions, StateResource
        from ray.util.state.exception import RayStateApiException, ServerUnavailable

        whole = what == "jobs"

        def ask() -> list[dict[str, Any]]:
            with _aimed():
                client = StateApiClient(address=self.address)
            options = ListApiOptions(limit=MAX_ROWS, detail=True, timeout=30)
            try:
                found = client.list(StateResource(what), options, raise_on_missing_output=whole)
            except ServerUnavailable as error:
                raise Dropped(_first_line(error)) from error
            except RayStateApiException as error:
                raise RunError(f"{self.address} does not tell all {what}: {_first_line(error)}") from error
            if whole and len(found) >= MAX_ROWS:
                raise RunError(f"{self.address} tells {MAX_ROWS} {what} at most, and there may be more that live")
            return [dict(row) if isinstance(row, dict) else dict(vars(row)) for row in found]

        return self._ask(ask)


def no_token(address: str) -> str:
    return (
        f"{address} asks for a token, and there is none here or another one: copy ~/.ray/auth_token from where `ray up` ran "
        "(on the head, `ray get-auth-token` prints it) to ~/.ray/auth_token, or name its file in RAY_AUTH_TOKEN_PATH"
    )


def _client(address: str) -> Any:
    from ray.job_submission import JobSubmissionClient

    for module in ("job.sdk", "dashboard_sdk"):
        logging.getLogger(f"ray.dashboard.modules.{module}").setLevel(logging.WARNING)

    class Impatient(JobSubmissionClient):  # type: ignore[misc]
        """Ray's own waits for ever on a connection that hangs."""

        def _do_request(self, method: str, endpoint: str, **options: Any) -> Any:
            return super()._do_request(method, endpoint, **({"timeout": TIMEOUT_S} | options))

    return Impatient(address)


@contextlib.contextmanager
def _aimed() -> Iterator[None]:
    kept = {name: os.environ.pop(name) for name in REDIRECTS if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)


def _first_line(error: BaseException) -> str:
    return without_password(" ".join(str(error).split())[:300])
