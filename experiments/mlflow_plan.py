"""What the first start of a run fixes for MLflow, kept in the run folder (``tracking.json``) so that every later start agrees."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from typing import Any

from experiments.mlflow_rows import layout_of
from orchestrator.files import write_atomic
from orchestrator.paths import RunPaths

Pair = tuple[str, int]
"""Prompt id and seed."""


class Plan:
    """``sweep_key``: a random name, by which the run's MLflow runs are found again on any server. ``layout``: see ``per_prompt``;
    ``auto`` is decided once, so a run that grows beyond the limit keeps it. ``pairs``: the spec's prompts and seeds."""

    def __init__(self, paths: RunPaths, spec: Mapping[str, Any]) -> None:
        self._paths = paths
        held = json.loads(paths.tracking.read_text(encoding="utf-8")) if paths.tracking.exists() else {}
        self.sweep_key = str(held.get("sweep_key") or uuid.uuid4().hex)
        self.pairs: list[Pair] = [(str(prompt["id"]), int(prompt["seed"])) for prompt in spec.get("prompts") or ()]
        policy = (spec.get("tracking") or {}).get("per_prompt", "auto")
        decided = policy == "auto" and "per_prompt" in held
        self.layout = layout_of(held["per_prompt"] if decided else policy, len(set(self.pairs)))
        order = dict.fromkeys([*((str(name), int(seed)) for name, seed in held.get("steps", ())), *self.pairs])
        self._steps = {pair: step for step, pair in enumerate(order)}
        if self._told() != held:
            self._save()

    def step(self, pair: Pair) -> int:
        """The prompt's number: the same in every arm and every start. One that the spec does not have gets the next."""
        if pair not in self._steps:
            self._steps[pair] = len(self._steps)
            self._save()
        return self._steps[pair]

    def _told(self) -> dict[str, Any]:
        return {"sweep_key": self.sweep_key, "per_prompt": self.layout, "steps": [list(pair) for pair in self._steps]}

    def _save(self) -> None:
        write_atomic(self._paths.tracking, json.dumps(self._told()) + "\n")
