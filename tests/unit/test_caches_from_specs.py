"""Caches named in a spec: run by the command on wan-mini, refused with the reason and what serves instead."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from orchestrator import cli_sweep
from orchestrator.cli import app
from orchestrator.config import build_sweep
from orchestrator.mistakes import ConfigError

SPEC = """
prompts: [a red circle]
planner: full
arms:
  whole: {}
  taylor: {accelerators: [taylorseer]}
  blocks: {accelerators: [{taylorseer: {mode: blocks, interval: 4}}]}
  delta: {accelerators: [delta-dit]}
  first: {accelerators: [{first-block: {threshold: 10}}]}
  db: {accelerators: [{dbcache: {threshold: 10}}]}
  pab: {accelerators: [pab]}
  faster: {accelerators: [fastercache]}
  both: {planner: dvg, budget: 0.5, accelerators: [taylorseer]}
  dvg: {planner: dvg, budget: 0.5}
steps: 20
frames: 9
height: 64
width: 64
metrics: {names: []}
tracking: {enabled: false}
"""
SHARES = {
    "taylor": 4 / 20,
    "blocks": 5 / 20,
    "delta": 1 - 5 / 7 * 9 / 20,
    "first": (2 + 18 / 7) / 20,
    "db": (9 + 11 / 7) / 20,
}
"""Of the whole run's operations, by each rule alone: wan-mini has 7 blocks."""


def test_caches_run_from_a_spec_and_spare_what_their_rules_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli_sweep, "conclude", lambda *given: ())  # the report is another test's
    spec = tmp_path / "spec.yaml"
    spec.write_text(SPEC)
    done = CliRunner().invoke(app, ["sweep", str(spec), "--local", "--out", str(tmp_path / "run")])
    assert done.exit_code == 0, done.output
    rows = {row["arm"]: row for row in map(json.loads, (tmp_path / "run" / "records.jsonl").read_text().splitlines())}
    assert {arm: row["accelerators"] for arm, row in rows.items() if row["accelerators"]} == {
        "taylor": "taylorseer", "blocks": "taylorseer", "delta": "delta-dit", "first": "first-block", "db": "dbcache",
        "pab": "pab", "faster": "fastercache", "both": "taylorseer",
    }  # fmt: skip
    assert {arm for arm, row in rows.items() if row["reconstructed"]} == {"delta"}
    executed = {arm: row["tflops"] / rows["whole"]["tflops"] for arm, row in rows.items()}
    assert {arm: executed[arm] for arm in SHARES} == pytest.approx(SHARES, rel=0.05)
    assert executed["faster"] < executed["pab"] < 1
    assert executed["both"] < 0.75 * executed["dvg"]


REFUSED: dict[str, tuple[dict[str, Any], list[str]]] = {
    "cache-dit": (
        {"accelerators": ["cache-dit"]},
        ["not available", "wraps the blocks that diffusers runs", "dbcache is its rule on ours"],
    ),
    "two": ({"accelerators": ["pab", "taylorseer"]}, ["pab and taylorseer cannot be combined", "take one of them"]),
    "unknown": ({"accelerators": ["taylor"]}, ["'taylor'", "taylorseer"]),
    "no branch": (
        {"guidance": 1.0, "accelerators": [{"fastercache": {"negative_interval": 5}}]},
        ["has no branch without the prompt", "set it to 1"],
    ),
    "too many": (
        {"accelerators": [{"dbcache": {"fn_blocks": 5, "bn_blocks": 2}}]},
        ["dbcache: the first 5 and the last 2", "7 in all", "fewer of them"],
    ),
    "setting": ({"accelerators": [{"taylorseer": {"interval": 0}}]}, ["taylorseer", "interval", "greater than or equal to 1"]),
}


@pytest.mark.parametrize(("settings", "words"), REFUSED.values(), ids=REFUSED)
def test_a_cache_that_cannot_be_had_is_refused_with_the_reason_and_what_serves_instead(
    settings: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(ConfigError) as refused:
        build_sweep({"prompts": ["a red circle"], "arms": {"a": {"planner": "full", **settings}}}, Path())
    text = "\n".join(refused.value.mistakes)
    assert all(word in text for word in words), text
