"""``dvg report``: what it writes where, and what it leaves alone."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from experiments.metrics.quality import append
from orchestrator.cli import app
from orchestrator.ledger import Ledger, read_records
from orchestrator.mistakes import ConfigError
from orchestrator.ownership import RunLock
from orchestrator.paths import RunPaths
from orchestrator.store import UrlStore
from tests.fakerun import make_records, make_run, quality_row


def dvg(*words: object) -> str:
    """What it printed. Raises what the command raises."""
    done = CliRunner().invoke(app, ["report", *map(str, words)], catch_exceptions=False, standalone_mode=False)
    if done.exception:
        raise done.exception
    return done.stdout


@pytest.fixture
def run(tmp_path: Path) -> RunPaths:
    paths = make_run(tmp_path / "one", make_records(2))
    for record in read_records(paths.records):
        if record.arm != "full":
            append(paths, quality_row(record))
    return paths


def state(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_page_elsewhere_changes_nothing_in_a_run_that_may_still_be_written(run: RunPaths, tmp_path: Path) -> None:
    out, sheet = tmp_path / "page.html", tmp_path / "sheet.png"
    with RunLock(run):
        with run.records.open("ab") as records:
            records.write(b'{"item_key": "half')
        before = state(run.root)
        told = dvg(run.root, "--out", out, "--sheet", sheet)
        assert state(run.root) == before
    assert str(out) in told
    assert str(sheet) in told
    assert out.read_text().count("<article") == 2
    assert sheet.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("videos, held", [("none", 0), ("1", 2), ("all", 4), ("auto", 4)])
def test_so_many_prompts_have_their_videos_in_the_file(run: RunPaths, tmp_path: Path, videos: str, held: int) -> None:
    dvg(run.root, "--out", tmp_path / "page.html", "--videos", videos)
    assert (tmp_path / "page.html").read_text().count('src="data:video/mp4') == held


def test_several_runs_become_one_page_with_arms_by_run(run: RunPaths, tmp_path: Path) -> None:
    other = make_run(tmp_path / "two", make_records(3))
    dvg(run.root, other.root, "--out", tmp_path / "page.html", "--base", "two/dvg")
    text = (tmp_path / "page.html").read_text()
    assert text.count("<article") == 3
    assert all(f'data-arm="{name}"' in text for name in ("one/full", "one/dvg", "two/full", "two/dvg"))
    assert "two/dvg <small>reference</small>" in text


def test_a_run_behind_a_url_is_read_without_its_working_folder(run: RunPaths, tmp_path: Path) -> None:
    url = UrlStore("memory://reported/run")
    for path, data in state(run.root).items():
        url.put(run.relative(path), data)
    dvg("memory://reported/run", "--out", tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert text.count("<article") == 2
    assert "the video file is missing" in text, "records say that the videos have no bytes, so none is held"


def test_the_page_of_a_run_has_its_sheet_beside_it(run: RunPaths) -> None:
    dvg(run.root, "--videos", "none")
    assert run.sheet.is_file()
    assert 'src="videos/dvg/' in run.report.read_text()


@pytest.mark.parametrize(
    "words, says",
    [
        (["{one}", "{one}", "--out", "x.html"], "is given twice"),
        (["{one}", "{none}", "--out", "x.html"], "is no run: it has neither"),
        (["{one}", "{one}"], "give --out FILE"),
        (["{one}", "--videos", "some"], "--videos 'some' must be none, all, auto, or a number"),
        (["{one}", "--out", "x.html", "--base", "ful"], "did you mean 'full'"),
        (["{one}", "--out", "{one}"], "is a folder"),
    ],
)
def test_what_cannot_be_reported_is_told_and_nothing_is_written(
    run: RunPaths, tmp_path: Path, words: list[str], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=says):
        dvg(*(word.format(one=run.root, none=tmp_path / "none") for word in words))
    assert not (tmp_path / "x.html").exists()
    assert not (tmp_path / "none").exists()
    assert len(Ledger(run).records()) == 4
