"""How a comparison is shown: in terminals of several widths, as a page, and by the command itself."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from experiments.compare.comparison import Comparison, compare
from experiments.compare.forest import WIDTH, Entry, forest
from experiments.compare.page import html_text
from experiments.compare.sources import read_runs
from experiments.compare.table import tables
from orchestrator.cli import app
from orchestrator.mistakes import ConfigError
from tests.fakerun import make_failure, make_record
from tests.unit.comparing import arm_records, write_run, write_scores


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs") / "demo"
    make_failure(write_run(root, arm_records(), vbench={"full": 0.97, "dvg": 0.965, "tiny": 0.975}))
    return root


@pytest.fixture(scope="module")
def demo(place: Path) -> Comparison:
    return compare(read_runs([str(place)]))


def shown(comparison: Comparison, width: int) -> str:
    console = Console(width=width, file=io.StringIO(), highlight=False)
    for part in tables(comparison, width):
        console.print(part)
    return console.file.getvalue()  # type: ignore[attr-defined,no-any-return]


@pytest.mark.parametrize("width", [80, 120, 200])
def test_tables_fit_the_terminal_and_cut_no_figure(demo: Comparison, width: int) -> None:
    text = shown(demo, width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    for figure in ("16/17", "2.00x", "28.75 [27.75, 29.75]", "-0.0010 [-0.0018, -0.0003]", "25%", "0.9650-", "0.9750+"):
        assert figure in text
    assert ("executed" in text, "[2.00, 2.00]" in text) == (width >= 120, width >= 120)


def test_names_that_look_like_markup_are_shown_as_they_are(tmp_path: Path) -> None:
    names = {"full": "[/full]", "dvg": "[bold]dvg", "tiny": "[link=x]"}
    records = [dataclasses.replace(record, arm=names[record.arm]) for record in arm_records(num_prompts=2)]
    paths = write_run(tmp_path / "run", records, vbench={"full": 0.97}, reference="[/full]")
    for name in names.values():
        write_scores(paths, name, 0.9)
    out = shown(compare(read_runs([str(tmp_path / "run")])), 200)
    assert "less [/full]" in out
    assert {name: out.count(name) >= 3 for name in names.values()} == dict.fromkeys(names.values(), True)


def test_long_names_of_arms_are_folded_and_their_figures_stay_whole(tmp_path: Path) -> None:
    name = "guided-with-everything-at-density-0.25-and-eight-ranks"
    text = (write_run(tmp_path / "run", arm_records()).records).read_text().replace('"arm": "tiny"', f'"arm": "{name}"')
    (tmp_path / "run" / "records.jsonl").write_text(text)
    out = shown(compare(read_runs([str(tmp_path / "run")])), 80)
    assert max(map(len, out.splitlines())) <= 80
    assert "…" not in out
    assert "4.00x" in out


def test_many_arms_share_several_tables_of_scores(tmp_path: Path) -> None:
    names = [f"arm-{n:02d}" for n in range(9)]
    records = [make_record(arm, "pan") for arm in names]
    write_run(tmp_path / "run", records, vbench=dict.fromkeys(names, 0.9), reference=None)
    out = shown(compare(read_runs([str(tmp_path / "run")])), 80)
    assert out.count("VBench temporal flickering ") >= 3
    assert max(map(len, out.splitlines())) <= 80
    assert all(name in out for name in names)


def test_the_page_is_whole_and_loads_nothing(demo: Comparison) -> None:
    page = html_text(demo)
    assert re.findall(r"(?:https?:)?//\w|@import|url\(|<link[^>]+href=\"(?!data:)|\ssrc=", page) == []
    for word in ("full", "dvg", "tiny", "2.00×", "LPIPS", "VBench temporal flickering", "1 given up", "★", "</html>"):
        assert word in page
    assert page.count("<svg") == 2 + 5


class Balance(HTMLParser):
    """Elements that were opened and not closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag not in ("meta", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: object) -> None:
        pass


def test_the_page_closes_what_it_opens(demo: Comparison) -> None:
    parser = Balance()
    parser.feed(html_text(demo))
    assert parser.open == []


def test_names_cannot_break_the_page(tmp_path: Path) -> None:
    paths = write_run(tmp_path / "run", arm_records(("full", "dvg")))
    for path in (paths.records, paths.quality):
        path.write_text(path.read_text().replace('"arm": "dvg"', '"arm": "<script>alert(1)</script>"'))
    page = html_text(compare(read_runs([str(paths.root)])))
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert" in page


@pytest.mark.parametrize("vbench", [None, {"full": 0.9}])
def test_a_page_and_tables_without_quality_are_whole(tmp_path: Path, vbench: dict[str, float] | None) -> None:
    paths = write_run(tmp_path / "run", arm_records(("full",), num_prompts=1, num_seeds=1), vbench=vbench)
    paths.quality.unlink()
    make_failure(paths, arm="broken")
    comparison = compare(read_runs([str(paths.root)]))
    assert "broken" in html_text(comparison)
    assert "0/1" in shown(comparison, 80)
    assert "front" not in shown(comparison, 80)


def test_arms_that_cannot_be_compared_are_shown_without_a_front(tmp_path: Path) -> None:
    write_run(tmp_path / "a", arm_records(("full",)))
    write_run(tmp_path / "b", [r for r in arm_records(num_seeds=4) if r.seed > 1])
    comparison = compare(read_runs([str(tmp_path / "a"), str(tmp_path / "b")]))
    assert comparison.quality is None
    assert "b/tiny" in html_text(comparison)
    assert "b/tiny" in shown(comparison, 80)


def test_whiskers_stay_inside_their_chart_and_zero_is_where_nothing_differs() -> None:
    entries = [Entry("a", "", 1, 0.5, 0.25, 2.0), Entry("b", "", 2, 0.125)]
    chart = forest("metric", "", entries, of_differences=True)
    assert all(0 <= x <= WIDTH for line in chart.lines for x in (line.start, line.x, line.end))
    assert chart.zero is not None
    assert chart.zero < chart.lines[1].x < chart.lines[0].start < chart.lines[0].x < chart.lines[0].end
    assert chart.lines[1].start == chart.lines[1].x == chart.lines[1].end
    assert forest("metric", "", entries, of_differences=False).zero is None


def test_the_command_prints_writes_and_leaves_json_clean(place: Path, tmp_path: Path) -> None:
    run = CliRunner().invoke
    files = {"--csv": tmp_path / "new" / "arms.csv", "--html": tmp_path / "arms.html"}
    options = ["--base", "dvg", "--metrics", "ssim, vbench", *(str(each) for pair in files.items() for each in pair)]
    done = run(app, ["compare", str(place), *options])
    assert done.exit_code == 0, done.output
    assert "against dvg" in done.output
    assert [row["label"] for row in csv.DictReader(files["--csv"].open())] == ["dvg", "full", "tiny"]
    assert files["--html"].read_text().startswith("<!doctype html>")
    found = json.loads(run(app, ["compare", str(place), "--json"]).stdout)
    assert found["base"] == "full"


def test_the_command_refuses_what_it_cannot_do(place: Path, tmp_path: Path) -> None:
    run = CliRunner().invoke
    assert isinstance(run(app, ["compare", str(tmp_path / "no")]).exception, ConfigError)
    (tmp_path / "file").write_text("")
    refused = run(app, ["compare", str(place), "--csv", str(tmp_path / "file" / "arms.csv")]).exception
    assert isinstance(refused, ConfigError)
    assert "cannot be written" in str(refused)
    assert run(app, ["compare"]).exit_code == 2
