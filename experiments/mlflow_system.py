"""What the nodes were doing, from ``system.jsonl`` to the sweep run's system metrics, each sample once and at its own time."""

from __future__ import annotations

import json
from pathlib import Path

from mlflow.entities import Metric

from experiments.mlflow_runs import Known, Runs

SYSTEM = "system/"
"""Before the names of MLflow's own system metrics, which its pages show apart; a node's name follows."""
MARK = "cpu_utilization_percentage"
"""Every sample has it."""


class Samples:
    """Reads on from where it stopped. What MLflow holds is asked once per node."""

    def __init__(self, runs: Runs, path: Path) -> None:
        self.runs, self.path = runs, path
        self._offset = 0
        self._sent: dict[str, tuple[int, int]] = {}
        """Of each node: the last sample's time and the next one's step."""

    def put(self, known: Known) -> None:
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            file.seek(self._offset)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        rows = [json.loads(line) for line in whole.splitlines()]
        groups = [points for row in rows if (points := self._points(known, row["node"], row["time_ms"], row["metrics"]))]
        with self.runs.at_once():
            self.runs.log_points(known, groups)
        self._offset += len(whole)

    def _points(self, known: Known, node: str, time_ms: int, metrics: dict[str, float]) -> list[Metric]:
        if node not in self._sent:
            name = f"{SYSTEM}{node}/{MARK}"
            found = self.runs.client.get_metric_history(known.run_id, name) if name in known.metrics else []
            self._sent[node] = max((point.timestamp for point in found), default=0), len(found)
        last_ms, step = self._sent[node]
        if time_ms <= last_ms:
            return []
        self._sent[node] = time_ms, step + 1
        return [Metric(f"{SYSTEM}{node}/{name}", value, time_ms, step) for name, value in metrics.items()]
