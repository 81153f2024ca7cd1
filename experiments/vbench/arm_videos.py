"""What one arm of a run has made, by prompt and in the order in which its spec names the seeds."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from orchestrator.config import read_yaml
from orchestrator.mistakes import ConfigError, unknown
from orchestrator.paths import RunPaths
from orchestrator.prompts import prompt_id
from orchestrator.suites import CUSTOM_DIMENSIONS, Entry
from orchestrator.types import Record, record_from_row

Key = tuple[str, int]
"""Prompt id and seed."""


@dataclass(frozen=True)
class Asked:
    """A prompt of a run. ``prompt`` is what it is evaluated as, which the videos' own may be a longer form of."""

    prompt: str
    extended: bool
    dimensions: tuple[str, ...]
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class ArmVideos:
    """``asked`` by prompt id, in the spec's order, then whatever else the arm has made."""

    arm: str
    asked: dict[str, Asked]
    records: Mapping[Key, Record]

    def id_of(self, entry: Entry) -> str | None:
        """The run's name for a suite's prompt: the one that ``prompts: <suite>`` gives it, or else the first with its text."""
        usual = prompt_id(entry.prompt, entry.image)
        if usual in self.asked and self.asked[usual].prompt == entry.prompt:
            return usual
        return self._by_prompt.get(entry.prompt)

    @cached_property
    def _by_prompt(self) -> dict[str, str]:
        return {asked.prompt: name for name, asked in reversed(self.asked.items())}

    def of(self, name: str | None, num_videos: int) -> list[Record | None]:
        """The first ``num_videos`` videos of a prompt; None for one that is not made, or not asked for."""
        seeds = self.asked[name].seeds[:num_videos] if name in self.asked else ()
        found = [self.records.get((str(name), seed)) for seed in seeds]
        return found + [None] * (num_videos - len(found))


def read_arm(paths: RunPaths, arm: str, records: Sequence[Record] | None = None, may_be_empty: bool = False) -> ArmVideos:
    """``records`` None: those in the folder now.

    Raises ConfigError for a folder that is no run, and for an arm without videos unless it ``may_be_empty``.
    """
    rows = read_yaml(paths.config).get("prompts") or []
    records = finished_records(paths) if records is None else records
    arms = sorted({record.arm for record in records})
    if arm not in arms and not may_be_empty:
        told = unknown("arm with videos:", arm, arms) if arms else f"{str(paths.root)!r} has no finished video"
        raise ConfigError([told])
    mine = {(record.prompt_id, record.seed): record for record in records if record.arm == arm}
    return ArmVideos(arm, _asked(rows, mine.values()), mine)


def finished_records(paths: RunPaths) -> list[Record]:
    """Whole lines of ``records.jsonl`` only, so a run may be looked at while it goes on; the last one of an item counts."""
    data = paths.records.read_bytes() if paths.records.is_file() else b""
    found = [record_from_row(json.loads(line)) for line in data[: data.rfind(b"\n") + 1].splitlines()]
    return list({record.item_key: record for record in found}.values())


def _asked(rows: Iterable[Mapping[str, Any]], records: Iterable[Record]) -> dict[str, Asked]:
    """Prompts of the spec, then those of an earlier one that are still in the folder; their further seeds by number."""
    first: dict[str, Mapping[str, Any]] = {}
    seeds: dict[str, list[int]] = {}
    made = [{"id": r.prompt_id, "prompt": r.prompt, "seed": r.seed} for r in sorted(records, key=lambda r: (r.prompt_id, r.seed))]
    for row in (*rows, *made):
        name = str(row["id"])
        first.setdefault(name, row)
        if row["seed"] not in seeds.setdefault(name, []):
            seeds[name].append(int(row["seed"]))
    return {name: _one(row, seeds[name]) for name, row in first.items()}


def _one(row: Mapping[str, Any], seeds: Sequence[int]) -> Asked:
    prompt = str(row.get("original") or row["prompt"])
    dimensions = tuple(str(row.get("dimensions") or "").split()) or CUSTOM_DIMENSIONS
    return Asked(prompt, prompt != row["prompt"], dimensions, tuple(seeds))
