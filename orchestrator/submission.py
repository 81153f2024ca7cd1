"""What ``dvg submit`` asks of a cluster: the job, the line that a person could type instead, and what its end means."""

from __future__ import annotations

import hashlib
import json
import secrets
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from orchestrator.mistakes import ConfigError
from orchestrator.naming import PREFIX
from orchestrator.paths import file_name
from orchestrator.store import parse_place

EXCLUDES = (".git", "runs", ".venv", "venv", "mlruns", "node_modules", "__pycache__", "*.egg-info")
"""Never needed by a sweep, and often what makes a folder too large to send."""
STOP_MARGIN_S = 30
"""What a driver may take beyond its workers' grace period, to write its last records."""
DONE, FAILED, WRONG, PARTLY, INTERRUPTED = 0, 1, 2, 3, 130
ENDED = frozenset({"SUCCEEDED", "FAILED", "STOPPED"})


@dataclass(frozen=True)
class Submission:
    """One sweep as a job. ``spec`` is relative to ``working_dir``, whose files travel; ``out`` is absolute or a URL."""

    name: str
    spec: PurePosixPath
    overrides: tuple[str, ...]
    out: str
    working_dir: Path
    digest: str
    """Of the spec as it is sent, so that the same sweep is known again while it runs."""
    grace_s: float = 0.0
    tag: str = ""
    flags: tuple[str, ...] = ()
    """More options of ``dvg sweep``."""

    @property
    def job_id(self) -> str:
        """Safe as part of a URL and of a log file's name."""
        return f"{PREFIX}{file_name(self.name)}-{self.tag}"

    @property
    def entrypoint(self) -> str:
        """A shell reads it on the head, so every word is quoted."""
        return sweep_line(str(self.spec), self.overrides, self.out, self.flags)

    @property
    def metadata(self) -> dict[str, str]:
        return {"dvg_sweep": self.name, "dvg_out": self.out, "dvg_spec": self.digest}

    @property
    def environment(self) -> dict[str, str]:
        """How long Ray waits between asking a job to stop and killing it. No credential is ever sent: nodes have their own."""
        return {"RAY_JOB_STOP_WAIT_TIME_S": str(round(self.grace_s) + STOP_MARGIN_S)}

    @property
    def runtime_env(self) -> dict[str, Any]:
        return {"working_dir": str(self.working_dir), "excludes": list(EXCLUDES), "env_vars": self.environment}


def sweep_line(spec: str, overrides: Sequence[str], out: str, flags: Sequence[str] = ()) -> str:
    """The command that makes a sweep, quoted for a shell."""
    first = f"./{spec}" if spec.startswith("-") else spec
    return shlex.join(["dvg", "sweep", first, *overrides, "--out", out, *flags])


def command_line(submission: Submission, address: str, environment: Mapping[str, str]) -> str:
    """What a person would type in ``working_dir`` to submit the same job; ``environment`` goes before the command."""
    sent = {key: value for key, value in submission.runtime_env.items() if key != "working_dir"}
    words = ["ray", "job", "submit", "--address", address, "--submission-id", submission.job_id, "--working-dir", "."]
    words += ["--runtime-env-json", json.dumps(sent), "--metadata-json", json.dumps(submission.metadata), "--"]
    before = [f"{key}={shlex.quote(value)}" for key, value in environment.items()]
    return " ".join([*before, shlex.join(words), submission.entrypoint])


def new_tag() -> str:
    """Tells one submission of a sweep from the next."""
    return secrets.token_hex(4)


def flags_of(work: str | None, limit: int | None, force: bool) -> tuple[str, ...]:
    """Options that ``dvg submit`` passes on."""
    given = [] if work is None else ["--work", work]
    given += [] if limit is None else ["--limit", str(limit)]
    return (*given, "--force") if force else tuple(given)


def digest_of(text: str, overrides: Sequence[str]) -> str:
    return hashlib.sha256("\0".join([text, *overrides]).encode()).hexdigest()[:16]


def exit_code(status: str, driver_exit_code: int | None) -> int:
    """What ``dvg sweep`` would have exited with: 0, 1, 2, 3, or 130 for a job that was stopped."""
    if status == "SUCCEEDED":
        return DONE
    if status == "STOPPED":
        return INTERRUPTED
    return driver_exit_code if driver_exit_code in (WRONG, PARTLY, INTERRUPTED) else FAILED


def place_mistakes(places: Mapping[str, str]) -> list[str]:
    """A job's working folder is thrown away, and its own copy of it on every node: results go to a place that stays."""
    told: list[str] = []
    for option, text in places.items():
        rule = "must be an absolute path" + (" that all nodes see, or a URL such as s3://bucket/run" if option == "--out" else "")
        try:
            place = parse_place(text)
        except ConfigError as error:
            told += error.mistakes
            continue
        lasts = place.is_absolute() if isinstance(place, Path) else option == "--out"
        if not lasts or "\0" in text:
            told.append(f"{option} {text!r} {rule}: a job's own folder is thrown away with the job")
    return told
