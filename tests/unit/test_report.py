"""report.html: one file, complete, that loads nothing and trusts no text."""

from __future__ import annotations

import base64
import dataclasses
import json
import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.report import Options, write_report
from experiments.report.charts import Point, scatter, thinned, ticks
from experiments.report.clips import Clip
from experiments.report.html import PER_PAGE
from experiments.report.material import Material
from experiments.report.page import Page, build_page
from orchestrator.ledger import Ledger
from orchestrator.paths import RunPaths
from orchestrator.types import Record
from tests.fakerun import make_failure, make_record, make_records, make_run, make_spec, quality_row


class _Page(HTMLParser):
    """Start tags with their attributes, open tags at the end, and all visible text."""

    VOID = frozenset({"meta", "link", "input", "br", "img"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]


def write(paths: RunPaths, **options: int) -> _Page:
    records = Ledger(paths).records()
    quality = [quality_row(r) for r in records if r.arm != "full"]
    page = _Page(write_report(paths, records, quality, Ledger(paths).failures(), Options(**options)).read_text())
    assert page.open == []
    return page


def page_of(records: list[Record], failures: list[dict[str, Any]] = [], spec: dict[str, Any] = {}) -> Page:  # noqa: B006
    return build_page(Material(records, [], failures, spec, [], {}, {}))


def test_the_report_loads_nothing_from_any_network(tmp_path: Path) -> None:
    paths = make_run(tmp_path, make_records(2))
    make_failure(paths)
    page = write(paths)
    text = paths.report.read_text()
    assert "://" not in text
    assert not re.search(r"@import|url\(|fetch\(|XMLHttpRequest", text)
    for _, attrs in page.tags:
        for name in {"src", "href", "poster", "action", "data"} & attrs.keys():
            assert str(attrs[name]).startswith(("data:", "#")), attrs


def test_every_video_is_in_the_file_byte_for_byte_and_plays_muted_in_a_loop(tmp_path: Path) -> None:
    paths = make_run(tmp_path, make_records(2))
    videos = write(paths).all("video")
    embedded = [base64.b64decode(str(video["src"]).removeprefix("data:video/mp4;base64,")) for video in videos]
    assert sorted(embedded) == sorted(path.read_bytes() for path in paths.videos.rglob("*.mp4"))
    assert all({"muted", "loop", "autoplay", "controls", "playsinline", "aria-label"} <= video.keys() for video in videos)


def test_videos_too_large_to_embed_are_linked_relative_to_the_report(tmp_path: Path) -> None:
    paths = make_run(tmp_path, make_records(1))
    sources = [video["src"] for video in write(paths, embed_up_to_bytes=10).all("video")]
    assert sources == ["videos/full/still-circle/0.mp4", "videos/dvg/still-circle/0.mp4"]
    assert all((tmp_path / str(source)).is_file() for source in sources)


def test_text_of_prompts_and_errors_is_shown_and_never_run(tmp_path: Path) -> None:
    evil = '</title><script>alert("x")</script><img src="http://x/y.png" onerror=alert(1)>'
    paths = make_run(tmp_path, [make_record(prompt=evil, why=evil)], videos=False)
    page = write(paths)
    assert [attrs.get("type") for attrs in page.all("script")] == ["application/json", None]
    assert page.all("img") == []
    assert evil in page.text


def test_arms_stand_side_by_side_in_one_order_with_action_density_and_reason(tmp_path: Path) -> None:
    records = make_records(3)
    page = write(make_run(tmp_path, records))
    assert [clip["data-arm"] for clip in page.all("figure") if "data-arm" in clip] == ["full", "dvg"] * 3
    for record in records:
        assert record.why in page.text
        assert record.action in page.text
        assert f"{record.density:.3f}" in page.text
    assert page.text.count("2.00×") == 1 + 3


def test_a_clip_tells_its_first_frame_and_a_budget_in_cost_with_what_was_predicted() -> None:
    plain = make_record(target="density=0.5", predicted_s=3.0, cost_label="uncalibrated")
    assert [Clip("a", 1, record).asked for record in (None, plain)] == ["", ""]
    asked = dataclasses.replace(plain, target="speedup=2", image="/some/where/fox.png")
    assert Clip("a", 1, asked).asked == "from fox.png; speedup=2: 3 s predicted (uncalibrated)"


def test_failures_show_their_story_and_leave_a_named_hole_in_their_prompt(tmp_path: Path) -> None:
    paths = make_run(tmp_path, [make_record("full", "orbit", 7), make_record("full", "drift"), make_record("dvg", "drift")])
    failure = make_failure(paths, "dvg", "orbit", 7)
    page = write(paths)
    assert "given up" in page.text
    assert page.text.count(failure["error"]) == 2
    for line in failure["story"]:
        assert line in page.text


def test_prompts_beyond_a_page_are_data_that_cannot_end_their_script(tmp_path: Path) -> None:
    evil = "</script><script>alert(1)</script><!--"
    num = PER_PAGE + 3
    page = write(make_run(tmp_path, [make_record("full", f"p{n:02d}", prompt=f"{n} {evil}") for n in range(num)], videos=False))
    assert len(page.all("article")) == PER_PAGE
    assert len(page.all("script")) == 2
    data = json.loads(re.search(r"{\"perPage.*", page.text)[0])  # type: ignore[index]
    assert [row["order"] for row in data["prompts"]] == list(range(1, num + 1))
    later = _Page(data["prompts"][-1]["html"])
    assert later.all("script") == []
    assert f"{num - 1} {evil}" in later.text


def test_of_a_large_run_the_first_prompts_are_held_and_the_others_linked(tmp_path: Path) -> None:
    paths = make_run(tmp_path, make_records(3))
    held = [str(video["src"]).startswith("data:") for video in write(paths, num_held=2).all("video")]
    assert held == [True] * 4 + [False] * 2
    first = sum(path.stat().st_size for path in paths.videos.glob("*/still-circle/0.mp4"))
    held = [str(video["src"]).startswith("data:") for video in write(paths, embed_up_to_bytes=first).all("video")]
    assert held == [True] * 2 + [False] * 4


def test_rows_without_psnr_or_ssim_are_shown_by_what_they_have(tmp_path: Path) -> None:
    record = make_record("full")
    row = {**quality_row(record), "reference_arm": None, "reference_sha256": None, "flicker": 0.9512, "unavailable": {}}
    del row["psnr"], row["ssim"]
    page = _Page(
        write_report(make_run(tmp_path, [record]), [record], [row | {"semantic_colour": 1.0, "semantic_shape": 0.0}]).read_text()
    )
    assert "0.9512" in page.text
    assert "1 of 2" in page.text
    assert "lowest SSIM" not in page.text


def test_a_missing_video_file_is_named_instead_of_a_broken_player(tmp_path: Path) -> None:
    paths = make_run(tmp_path, make_records(1))
    (tmp_path / "videos/dvg/still-circle/0.mp4").unlink()
    page = write(paths)
    assert len(page.all("video")) == 1
    assert "videos/dvg/still-circle/0.mp4" in page.text


def test_a_run_without_records_or_reference_still_has_a_report(tmp_path: Path) -> None:
    assert "No video is finished yet." in write(make_run(tmp_path / "empty", [])).text
    only = make_run(tmp_path / "only", [make_record("dvg")], make_spec([make_record("dvg")]) | {"reference": None})
    page = _Page(write_report(only, [make_record("dvg")], []).read_text())
    assert "No quality was measured" in page.text


def test_the_commit_shown_is_the_runs_and_not_the_readers(tmp_path: Path) -> None:
    paths = make_run(tmp_path, make_records(1), videos=False)
    assert "commit" not in write(paths).text
    paths.manifest.write_text(json.dumps({"starts": [{"commit": None}, {"commit": "0123456789abcdef+"}]}))
    assert "0123456789+" in write(paths).text


def test_prompts_keep_the_order_of_the_spec() -> None:
    records = make_records(5)
    page = page_of(records[::-1], [], make_spec(records))
    assert [prompt.prompt_id for prompt in page.prompts] == [r.prompt_id for r in records[::2]]


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=20))
def test_ticks_enclose_the_data_evenly_and_are_few(values: list[float]) -> None:
    found = ticks(values)
    slack = 1e-6 * (found[-1] - found[0])
    assert found[0] <= min(values) + slack
    assert found[-1] >= max(values) - slack
    assert 2 <= len(found) <= 8
    steps = [b - a for a, b in pairwise(found)]
    assert max(steps) == pytest.approx(min(steps), rel=1e-3)


@given(st.lists(st.integers(), max_size=50), st.integers(1, 20))
def test_thinning_keeps_order_ends_evenly_and_few_enough(values: list[int], most: int) -> None:
    found = thinned(list(enumerate(values)), most)
    assert len(found) == min(len(values), most)
    assert found == sorted(found)


def test_a_range_too_small_to_matter_is_not_blown_up() -> None:
    found = ticks([0.7765, 0.7766], min_span=0.2)
    assert found[0] < 0.7
    assert found[-1] > 0.85


@given(
    st.lists(st.tuples(st.floats(0, 100), st.floats(0, 1), st.sampled_from(["", "full", "dvg-0.35"])), min_size=1, max_size=12)
)
def test_marks_stay_inside_the_frame_and_labels_never_overprint(points: list[tuple[float, float, str]]) -> None:
    chart = scatter("t", "x", "y", [Point(x, y, "", 1, label=label) for x, y, label in points])
    for mark in chart.marks:
        assert chart.left - 0.1 <= mark.x <= chart.right + 0.1
        assert chart.top - 0.1 <= mark.y <= chart.bottom + 0.1
    labels = [mark for mark in chart.marks if mark.point.label]
    for index, one in enumerate(labels):
        for other in labels[:index]:
            assert abs(one.label_x - other.label_x) > 20 or abs(one.label_y - other.label_y) > 10


def test_a_clip_that_several_ranks_made_says_how_many_each_stage_had_and_why(tmp_path: Path) -> None:
    sizing = "11,440 tokens: 4 GPUs, 0.24 s/step (86 %)"
    shared = make_record("dvg", "still-circle")
    widths = "|".join(["1", *["4"] * shared.stage_s.count("|")])
    shared = dataclasses.replace(shared, degree=4, stage_degrees=widths, sizing=sizing)
    page = write(make_run(tmp_path, [make_record("full", "still-circle"), shared]))
    assert f"ranks of the stages: {widths.replace('|', ', ')}. {sizing}" in page.text
    assert page.text.count("ranks of the stages") == 1, "nothing of the clip of one rank"
    assert sum("on 4 ranks" in str(bar.get("title")) for bar in page.all("i")) == widths.count("4")


def test_the_report_tells_gpu_time_and_videos_per_gpu_hour(tmp_path: Path) -> None:
    records = [dataclasses.replace(r, device="NVIDIA H200", device_s=72.0) for r in make_records(2)]
    cards = {card.label: card.value for card in page_of(records).cards}
    assert cards["GPU time"] == "4.8 min"
    assert cards["videos per GPU-hour"] == "50"
    on_cpu = {card.label for card in page_of(make_records(2)).cards}
    assert {"rank time", "videos per rank-hour"} <= on_cpu


@pytest.mark.parametrize("num_prompts", [0, 2])
def test_an_arm_of_which_every_item_was_given_up_has_a_row_and_is_no_headline(tmp_path: Path, num_prompts: int) -> None:
    paths = make_run(tmp_path, make_records(num_prompts, ("full",)), videos=False)
    make_failure(paths, "doomed")
    page = write(paths)
    assert re.search(r"doomed\s*0/1\s*–", page.text)
    assert "nan" not in paths.report.read_text().lower().replace("banana", "")
    cards = page_of(Ledger(paths).records(), Ledger(paths).failures(), make_spec([])).cards
    assert all("doomed" not in card.note for card in cards)
