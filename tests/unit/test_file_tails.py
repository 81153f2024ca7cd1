"""Of a file of lines only the end is read, however long it is."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator import files
from orchestrator.files import cut_torn_tail, last_line
from orchestrator.ledger import Ledger
from orchestrator.paths import RunPaths


@settings(deadline=None, max_examples=200)
@given(data=st.text("ab\n", max_size=30).map(str.encode), block=st.integers(1, 8))
def test_the_end_of_a_file_is_found_whatever_the_blocks_it_is_read_in(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, block: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "lines"
    path.write_bytes(data)
    whole = data[: data.rfind(b"\n") + 1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "BLOCK_BYTES", block)
        assert last_line(path) == (whole.split(b"\n")[-2] if whole else b"")
        cut_torn_tail(path)
    assert path.read_bytes() == whole


def test_opening_a_ledger_reads_the_end_of_its_event_log_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = RunPaths(tmp_path)
    row = json.dumps({"start": 6, "x": "x" * 100}).encode() + b"\n"
    paths.events.write_bytes(row * 100_000 + b'{"torn')
    num_bytes = _count_reads(monkeypatch, paths.events)
    Ledger(paths).write_event({"type": "x"})
    assert sum(num_bytes) < 10 * files.BLOCK_BYTES
    assert json.loads(last_line(paths.events))["start"] == 7
    assert paths.events.stat().st_size < len(row) * 100_001


def _count_reads(monkeypatch: pytest.MonkeyPatch, counted: Path) -> list[int]:
    """Sizes of the reads of one file from now on."""
    found: list[int] = []
    real = Path.open

    class Counted(io.BufferedRandom):
        def read(self, size: int | None = -1, /) -> bytes:
            data = super().read(size)
            found.append(len(data))
            return data

    def opened(path: Path, mode: str = "r", *args: Any, **options: Any) -> Any:
        if path == counted and mode in ("rb", "r+b"):
            return Counted(io.FileIO(os.fspath(path), "r+"))
        return real(path, mode, *args, **options)

    monkeypatch.setattr(Path, "open", opened)
    return found


def test_a_start_goes_on_counting_after_the_last_and_begins_at_one(tmp_path: Path) -> None:
    paths = RunPaths(tmp_path)
    for _ in range(3):
        Ledger(paths).write_event({"type": "x"})
    assert [json.loads(line)["start"] for line in paths.events.read_bytes().splitlines()] == [1, 2, 3]
    paths.events.write_bytes(b"by a person\n")
    Ledger(paths).write_event({"type": "x"})
    assert json.loads(last_line(paths.events))["start"] == 1
