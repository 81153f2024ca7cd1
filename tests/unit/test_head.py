"""The head's state as Ray's client gives it: jobs that are not told whole are an error, as gc goes by which of them live."""

from __future__ import annotations

from typing import Any

import pytest
import ray.util.state
from ray.util.state.exception import RayStateApiException, ServerUnavailable

from orchestrator import head as head_module
from orchestrator.cli_gc import run_gc
from orchestrator.head import Dropped, Head
from orchestrator.mistakes import RunError

ACTOR = {
    "actor_id": "ab",
    "name": "dvg-mine-sketch-0",
    "job_id": "01",
    "state": "ALIVE",
    "class_name": "Sketcher",
} | dict.fromkeys(("node_id", "pid", "ray_namespace"))


def told(rows: list[dict[str, Any]], total: int | None = None, warning: str = "") -> dict[str, Any]:
    """What the head answers: ``total`` rows are known to it, of which it sends these."""
    return {
        "result": rows,
        "total": len(rows) if total is None else total,
        "num_after_truncation": len(rows),
        "num_filtered": len(rows),
        "partial_failure_warning": warning,
    }


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the head answers by the last word of the address; an exception is raised."""
    found: dict[str, Any] = {"actors": told([ACTOR]), "placement_groups": told([]), "jobs": told([])}

    class Client(ray.util.state.StateApiClient):  # type: ignore[misc]
        def __init__(self, address: str) -> None:
            pass

        def _make_http_get_request(self, endpoint: str, **_: Any) -> Any:
            answer = found[endpoint.rsplit("/", 1)[1]]
            if isinstance(answer, Exception):
                raise answer
            return answer

    monkeypatch.setattr(ray.util.state, "StateApiClient", Client)
    monkeypatch.setattr(head_module, "_client", lambda address: None)
    return found


def job(number: int) -> dict[str, Any]:
    return {"job_id": f"{number:02}", "type": "DRIVER", "status": "RUNNING", "entrypoint": "dvg", "end_time": 0}


SHORT = (told([], total=1), told([job(2)], warning="1 of 2 sources did not answer"), RayStateApiException("internal error"))


@pytest.mark.parametrize("answer", SHORT, ids=("cut", "partly failed", "error"))
def test_nothing_is_removed_when_not_all_jobs_are_told(
    answers: dict[str, Any], answer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers["jobs"] = answer
    monkeypatch.setattr("orchestrator.cli_gc._remove_there", lambda *_: pytest.fail("a living sweep's actor would go"))
    with pytest.raises(RunError, match="does not tell all jobs"):
        run_gc(None, "http://127.0.0.1:8265", yes=True, as_json=True)


def test_as_many_jobs_as_the_head_tells_at_most_may_not_be_all(answers: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head_module, "MAX_ROWS", 2)
    answers["jobs"] = told([job(1)])
    assert len(Head("http://127.0.0.1:8265").rows("jobs")) == 1
    answers["jobs"] = told([job(1), job(2)])
    with pytest.raises(RunError, match="2 jobs at most"):
        Head("http://127.0.0.1:8265").rows("jobs")


def test_actors_that_are_not_all_told_are_shown_as_far_as_they_are(answers: dict[str, Any]) -> None:
    answers["actors"] = told([ACTOR], total=9)
    assert [row["name"] for row in Head("http://127.0.0.1:8265").rows("actors")] == [ACTOR["name"]]


def test_a_head_that_does_not_answer_is_asked_again(answers: dict[str, Any]) -> None:
    answers["jobs"] = ServerUnavailable("Failed to make request")
    with pytest.raises(Dropped):
        Head("http://127.0.0.1:8265").rows("jobs")
