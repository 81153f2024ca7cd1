"""Links into MLflow's pages show arms as a flat list, of all sweeps or of one."""

from __future__ import annotations

import json
import re
from urllib.parse import parse_qs

from experiments.mlflow_links import experiment_note, sweep_note


def queries(note: str) -> dict[str, dict[str, list[str]]]:
    return {name: parse_qs(link.partition("?")[2]) for name, link in re.findall(r"\[([^\]]+)\]\(([^)]+)\)", note)}


def test_an_experiments_links_find_arms_and_sort_by_a_metric_because_lists_by_time_fold_them_away() -> None:
    found = queries(experiment_note("7"))
    assert set(found) == {"table", "charts and strips"}
    assert found["table"]["searchFilter"] == ["tags.level = 'arm'"]
    assert found["table"]["orderByKey"] == ["metrics.`density`"]
    assert found["charts and strips"]["compareRunsMode"] == ["CHART"]


def test_a_sweeps_links_are_to_its_own_arms_and_to_their_comparison() -> None:
    found = queries(sweep_note("7", "key", ["a", "b"]))
    assert found["table"]["searchFilter"] == ["tags.level = 'arm' and tags.sweep_key = 'key'"]
    assert json.loads(found["compared"]["runs"][0]) == ["a", "b"]
    assert json.loads(found["compared"]["experiments"][0]) == ["7"]
    assert "compared" not in queries(sweep_note("7", "key", ["a"]))
