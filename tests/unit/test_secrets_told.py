"""Whatever a URL holds as a password or a token: it is not shown, not written, and not taken from a spec."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from orchestrator import ownership
from orchestrator.events import StartDecode
from orchestrator.jobs import failure_of, summary
from orchestrator.mistakes import RunError, password_mistakes, without_password
from orchestrator.store import reached
from orchestrator.types import Item, Slice
from orchestrator.work import failed
from tests.unit.test_local import FakeWorker, Run

HUSH = "hunter2"
ERROR = OSError(f"GET https://user:{HUSH}@mirror/w.safetensors failed")
COMMAND = StartDecode("key1", 1, "pod-0", Slice("pod-0", 2, 2))
ODD = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from("@/:?#&=%'\"\\[]{}()<>,;$"), max_size=6).filter(
    lambda text: not re.search(r"\s", text)
)
"""Of a password: anything but white space."""


@settings(deadline=None)
@example(before="p@", after="")
@example(before="a/", after="")
@example(before="?token=", after="@/&key=")
@given(before=ODD, after=ODD)
def test_no_part_of_a_password_is_shown_or_taken(before: str, after: str) -> None:
    url = f"postgresql://u:{HUSH}{before}{HUSH}{after}{HUSH}@db/x"
    shown = without_password(f"cannot reach '{url}' now")
    assert HUSH not in shown
    assert shown.startswith("cannot reach 'postgresql://")
    assert shown.endswith(" now")
    (told,) = password_mistakes({"tracking": {"uri": url}})
    assert told.startswith("tracking.uri must not hold a password")
    assert HUSH not in told


@settings(deadline=None)
@given(
    before=ODD,
    after=ODD,
    name=st.sampled_from(["token", "api_key", "KEY", "secret", "password", "signature", "X-Amz-Credential", "X-Amz-Date", "sig"]),
    start=st.sampled_from(["https://h/?", "https://h?", "https://h:80/a?b=c&", "/relative?"]),
)
def test_no_part_of_a_secret_in_a_query_is_shown_or_taken(before: str, after: str, name: str, start: str) -> None:
    url = f"{start}{name}={HUSH}{before}{HUSH}{after}{HUSH}"
    assert HUSH not in without_password(f"cannot reach {url} now")
    assert len(password_mistakes({"weights": url})) == 1
    assert len(password_mistakes({"weights": [url, "other"]})) == 1


@pytest.mark.parametrize(
    "text, shown",
    [
        ("mysql://u:p@ss@db/x", "mysql://***@db/x"),
        ("postgresql://u:a/b@db", "postgresql://***@db"),
        ("to s3://key@bucket/a and http://me:x@h/b.", "to s3://***@bucket/a and http://***@h/b."),
        ("'https://h/a?token=SECRET'", "'https://h/a?token=***'"),
        ("https://h/a?x=1&X-Amz-Signature=S", "https://h/a?x=1&X-Amz-Signature=***"),
        ("(url: /a?api_key=S)", "(url: /a?api_key=***)"),
    ],
)
def test_the_rest_of_a_url_is_shown(text: str, shown: str) -> None:
    assert without_password(text) == shown


@pytest.mark.parametrize(
    "text",
    ["http://127.0.0.1:5000/a", "https://h/models@v1/x?revision=2", "s3://bucket/a b@c", "write to a@b: yes", "ssh://git@host/x"],
)
def test_a_url_without_a_secret_is_taken(text: str) -> None:
    assert password_mistakes({"weights": text, "prompts": ["http://u:p@h"]}) == []
    assert without_password(text) == text.replace("git@", "***@")


def test_a_password_is_hidden_before_a_long_line_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable() -> None:
        raise ConnectionError("x" * 280 + f" http://u:{HUSH * 20}@proxy")

    with pytest.raises(RunError) as told:
        reached("s3://b/x", unreachable, pauses_s=())
    assert HUSH not in str(told.value)
    assert HUSH not in summary(OSError("x" * 380 + f" http://u:{HUSH * 20}@proxy"))
    monkeypatch.setattr("sys.argv", ["dvg", "x" * 180, f"http://u:{HUSH * 20}@proxy"])
    assert HUSH not in ownership._myself().command


class SecretWorker(FakeWorker):
    """Fails for one item, with a password in what it says."""

    def _begin(self, phase: str, item: Item) -> None:
        if item.item_key == "key1":
            raise ERROR
        super()._begin(phase, item)


def test_nothing_that_a_run_writes_or_tells_holds_a_password_of_a_workers_exception(tmp_path: Path) -> None:
    run = Run(tmp_path, SecretWorker(), max_attempts=1).make(1, 2)
    (failure,) = run.failures
    assert "OSError: GET https://***@mirror/w.safetensors failed" in failure["error"]
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert [path for path in files if HUSH.encode() in path.read_bytes()] == []
    assert HUSH not in repr(run.events) + repr(run.failures)


class TaskError(Exception):
    """As Ray wraps a worker's exception: its text is the traceback."""

    def __init__(self, cause: Any) -> None:
        self.cause = cause
        super().__init__(f"Traceback ...\n{cause}")


@pytest.mark.parametrize("error", [ERROR, TaskError(ERROR)])
def test_a_failure_on_ray_is_told_without_the_password(error: Exception) -> None:
    told = failure_of(1.0, COMMAND, error, "pod-0")
    assert HUSH not in repr(told)
    assert "https://***@mirror" in told.error
    assert HUSH not in repr(failed(1.0, "key1", 1, "decode", error))


def test_a_machines_fault_on_ray_is_told_without_the_password() -> None:
    with pytest.raises(RunError, match=r"GET https://\*\*\*@mirror"):
        failure_of(1.0, COMMAND, TaskError(RunError(str(ERROR))))
