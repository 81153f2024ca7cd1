"""The MLflow mirror against a real server that asks who it is, with the full package and with what ``mlflow-skinny`` brings."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from experiments import tracking
from experiments.following import Follower, follow
from experiments.mlflow_store import Changes
from experiments.mlflow_table import read_back
from experiments.tracking import FINISH
from orchestrator.ledger import Ledger
from orchestrator.paths import RunPaths
from tests.fakerun import make_failure, make_records, make_run, make_spec
from tests.mlflowserver import MlflowServer
from tests.mlflowstate import arms, by_level, outline

pytest.importorskip("flask_wtf", reason="MLflow's basic-auth app needs Flask-WTF")
pytestmark = pytest.mark.slow

PASSWORD = "long enough for MLflow"
ROOT = Path(__file__).parents[2]
SKINNY = """
import sys
ABSENT = {"pandas", "sqlalchemy", "alembic", "flask", "sklearn", "scipy", "matplotlib", "pyarrow", "graphene", "docker"}

class Hiding:
    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in ABSENT else self.finder.find_spec(name, path, target)

sys.meta_path[:] = map(Hiding, sys.meta_path)
from pathlib import Path
from experiments.tracking import mirror
from orchestrator.ledger import Ledger
from orchestrator.mistakes import RunError
from orchestrator.paths import RunPaths

ledger = Ledger(RunPaths(Path(sys.argv[1])))
try:
    changes = mirror(ledger, sys.argv[2])
    print("added", changes.num_added)
except RunError as error:
    print(error)
print("pandas" in sys.modules)
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, mlflow_database: Path) -> Iterator[MlflowServer]:
    root = tmp_path_factory.mktemp("server")
    shutil.copy(mlflow_database, root)
    server = MlflowServer(root, PASSWORD)
    server.start()
    try:
        yield server
    finally:
        server.kill()


@pytest.fixture(autouse=True)
def _admin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)


def run_folder(root: Path, server: MlflowServer, **settings: Any) -> RunPaths:
    records = make_records(2)
    spec = make_spec(records, uri=server.uri, experiment=root.name, **{"videos": 1, "strips": 1} | settings)
    return make_run(root, records, spec)


def test_a_server_with_authentication_gets_everything_once(tmp_path: Path, server: MlflowServer) -> None:
    paths = run_folder(tmp_path, server, traces=True)
    make_failure(paths)
    assert tracking.mirror(Ledger(paths)) == Changes(4, 4, 0)
    levels = by_level(paths, server.uri, tmp_path.name)
    assert {level: len(found) for level, found in levels.items()} == {"sweep": 1, "arm": 2, "prompt": 5}
    assert Counter(run.info.status for run in levels["prompt"]) == {"FINISHED": 4, "FAILED": 1}
    client, sweep = MlflowClient(tracking_uri=server.uri), levels["sweep"][0]
    assert {len(client.list_artifacts(arm.info.run_id, "images")) for arm in levels["arm"]} == {2}
    assert sum(len(client.list_artifacts(run.info.run_id, "video")) for run in levels["prompt"]) == 2
    assert len(client.search_traces(locations=[sweep.info.experiment_id], include_spans=False)) == 4
    found, _, failures = read_back(client, sweep.info.run_id)
    assert (len(found), len(failures)) == (4, 1)
    before = outline(paths, server.uri, tmp_path.name)
    assert tracking.mirror(Ledger(paths)) == Changes(4, 0, 0)
    assert outline(paths, server.uri, tmp_path.name) == before


def test_steps_go_to_a_server_once_too(tmp_path: Path, server: MlflowServer) -> None:
    paths = run_folder(tmp_path, server, per_prompt="steps")
    assert tracking.mirror(Ledger(paths)) == Changes(4, 4, 0)
    before = outline(paths, server.uri, tmp_path.name)
    assert tracking.mirror(Ledger(paths)) == Changes(4, 0, 0)
    assert outline(paths, server.uri, tmp_path.name) == before
    arm = arms(paths, server.uri, tmp_path.name)["dvg"]
    history = MlflowClient(tracking_uri=server.uri).get_metric_history(arm.info.run_id, "prompt/density")
    assert [point.step for point in history] == [0, 1]


def test_a_wrong_password_is_told_once_without_it_and_the_right_one_completes_the_run(
    tmp_path: Path, server: MlflowServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = run_folder(tmp_path, server)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "not the password")
    told: list[dict[str, Any]] = []
    follow(Follower(paths, told.append), lambda timeout_s: FINISH, told.append)
    assert told[-1] == {"complete": False}
    (warning,) = [row["warn"] for row in told if "warn" in row]
    assert "401" in warning or "not authenticated" in warning.lower()
    assert "not the password" not in warning
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
    assert tracking.mirror(Ledger(paths)) == Changes(4, 4, 0)


def test_a_client_with_no_more_than_skinny_brings_writes_to_the_server_and_says_what_it_cannot(
    tmp_path: Path, server: MlflowServer
) -> None:
    paths = run_folder(tmp_path, server, videos=1, strips=1)
    command = [sys.executable, "-c", SKINNY, str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([*command, server.uri], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-2:] == ["added 4", "False"]
    assert tracking.mirror(Ledger(paths)) == Changes(4, 0, 0)
    done = subprocess.run([*command, paths.mlflow_uri], env=environment, capture_output=True, text=True, check=True)
    assert "mlflow-skinny writes to http(s) servers alone" in done.stdout
