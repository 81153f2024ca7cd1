"""report.html in Chromium: it plays, filters, turns its tabs and pages, at both widths and in both themes, without an error."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from experiments.report import Options, report_of
from experiments.report.html import PER_PAGE
from experiments.report.material import Source
from experiments.vbench.normalise import T2V
from orchestrator.config import build_sweep
from orchestrator.ledger import Ledger
from orchestrator.runfolder import store_of
from orchestrator.types import Record
from tests.fakerun import make_failure, make_record, make_run, make_spec, moving_square, quality_row, write_video
from tests.unit.test_report_timeline import whole_log

playwright = pytest.importorskip("playwright.sync_api", reason="needs Playwright (the dev extra)")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")]

FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
NUM = PER_PAGE + 4
EVIL = '<img src=x onerror="document.title=1">\u2028</script>'
"""Part of a prompt."""


def records_of_a_run() -> list[Record]:
    found = []
    for n in range(NUM):
        prompt = f"clip {n} of a fox {EVIL if n == 1 else ''}"
        found.append(make_record("full", f"p{n:02d}", prompt=prompt, latency_s=9.0 + n / 10))
        action = "s0.90-f5" if n % 7 == 0 else "s0.70-f8"
        dvg = make_record("dvg", f"p{n:02d}", prompt=prompt, action=action, latency_s=4.0 + n / 10)
        found.append(replace(dvg, spatial_demand=n / NUM, temporal_demand=1 - n / NUM))
    return found


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with everything that a report shows; only the first prompts have videos, those of some are linked."""
    root = tmp_path_factory.mktemp("browser")
    records = records_of_a_run()
    arms = build_sweep({"prompts": ["x"], "arms": {"full": {"planner": "full"}, "dvg": {"budget": 0.5}}}, Path()).resolved()[
        "arms"
    ]
    paths = make_run(root / "run", records, {**make_spec(records), "arms": arms}, videos=False)
    for record in records[:6]:
        write_video(moving_square(17, 48), paths.root / record.video)
    make_failure(paths, prompt_id=f"p{NUM - 1:02d}", seed=9)
    ledger = Ledger(paths)
    for row in whole_log():
        ledger.write_event(row)
    for arm in ("full", "dvg"):
        path = paths.vbench_results("vbench", arm)
        path.parent.mkdir(parents=True)
        path.write_text("{" + ", ".join(f'"{dim}": [0.{5 + n % 4}, []]' for n, dim in enumerate(T2V.dimensions)) + "}")
    quality = [quality_row(r, ssim=0.5 + n / 100) for n, r in enumerate(records) if r.arm != "full"]
    source = Source(paths, store_of(paths), records, quality, ledger.failures())
    report_of([source]).write(root / "report.html", Options(num_held=2))
    return root / "report.html"


@pytest.fixture(scope="module")
def browser() -> Iterator[playwright.Browser]:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS, env={**os.environ, "DBUS_SESSION_BUS_ADDRESS": ""})
        yield browser
        browser.close()


class Reader:
    """Somebody at the page, who notes every error it tells and everything it asks the network for."""

    def __init__(self, browser: playwright.Browser, file: Path, width: int = 1400, theme: str = "light") -> None:
        self.context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=theme)
        self.page = self.context.new_page()
        self.errors: list[str] = []
        self.asked: list[str] = []
        self.page.on(
            "console", lambda message: self.errors.append(message.text) if message.type in ("error", "warning") else None
        )
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.set_default_timeout(20_000)
        self.page.goto(file.as_uri())

    def turn_to(self, panel: str) -> None:
        self.page.click(f"#tab-{panel}")
        assert self.page.locator(f"#{panel}").is_visible()
        assert self.page.locator(".tabpanel:visible").count() == 1

    @property
    def prompts(self) -> list[str]:
        return [text.split(" ")[0] for text in self.page.locator(".prompt .id").all_inner_texts()]

    def wait_for(self, condition: str) -> None:
        """By asking again: the page's policy lets no text become code, which is how the browser would wait."""
        for _ in range(400):
            if self.page.evaluate(condition):
                return
            self.page.wait_for_timeout(50)
        raise AssertionError(f"never came to be: {condition}")


@pytest.fixture
def reader(browser: playwright.Browser, page_file: Path) -> Iterator[Reader]:
    reader = Reader(browser, page_file)
    yield reader
    reader.context.close()
    assert reader.errors == []
    assert all(url.startswith(("file:", "data:", "blob:")) for url in reader.asked)


@pytest.mark.parametrize("width, theme", [(1400, "light"), (1400, "dark"), (400, "light"), (400, "dark")])
def test_every_part_fits_its_width_in_both_themes(browser: playwright.Browser, page_file: Path, width: int, theme: str) -> None:
    reader = Reader(browser, page_file, width, theme)
    for panel in ("overview", "prompts", "timeline", "vbench", "failures"):
        reader.turn_to(panel)
        assert reader.page.evaluate("document.documentElement.scrollWidth") <= width
    dark = reader.page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g)[0] < 100")
    assert dark == (theme == "dark")
    assert reader.errors == []
    reader.context.close()


PLAYING = "[...document.querySelectorAll('.prompt')].slice(0, 1).map((p) => [...p.querySelectorAll('video')])[0]"


def test_the_clips_of_a_prompt_play_pause_and_restart_together(reader: Reader) -> None:
    reader.turn_to("prompts")
    reader.wait_for(f"{PLAYING}.length === 2 && {PLAYING}.every((v) => !v.paused && v.currentTime > 0)")
    times = reader.page.evaluate(f"{PLAYING}.map((v) => v.currentTime)")
    assert abs(times[0] - times[1]) < 0.5
    reader.page.click("#play")
    reader.wait_for(f"{PLAYING}.every((v) => v.paused)")
    assert reader.page.inner_text("#play") == "Play all"
    reader.page.select_option("#rate", "0.25")
    reader.page.click("#restart")
    reader.wait_for(f"{PLAYING}.every((v) => !v.paused && v.playbackRate === 0.25)")


def test_linked_videos_play_like_those_inside(reader: Reader) -> None:
    reader.turn_to("prompts")
    third = reader.page.locator(".prompt").nth(2)
    assert not third.locator("video").first.get_attribute("src").startswith("data:")
    third.scroll_into_view_if_needed()
    reader.wait_for("document.querySelectorAll('.prompt')[2].querySelector('video').currentTime > 0")


def test_filters_by_words_action_and_demand_hold_together_and_are_cleared(reader: Reader) -> None:
    reader.turn_to("prompts")
    reader.page.click("#filters summary")
    reader.page.select_option("#action", "s0.90-f5")
    assert reader.prompts == ["p00", "p07", "p14", "p21"]
    reader.page.fill("#spatial-from", "0.3")
    assert reader.prompts == ["p14", "p21"]
    reader.page.fill("#temporal-from", "0.4")
    assert reader.prompts == ["p14"]
    assert reader.page.inner_text("#shown") == f"1 of {NUM + 1} prompts"
    reader.page.fill("#find", "nothing of the kind")
    assert reader.page.locator("#nothing").is_visible()
    reader.page.click("#all")
    assert len(reader.prompts) == PER_PAGE
    assert not reader.page.locator("#action").is_visible(), "a click elsewhere closes the menu"
    reader.page.click("#filters summary")
    reader.page.select_option("#action", "given up")
    assert reader.prompts == [f"p{NUM - 1:02d}"]


def test_pages_sorting_and_hidden_arms_reach_every_prompt(reader: Reader) -> None:
    reader.turn_to("prompts")
    assert len(reader.prompts) == PER_PAGE
    reader.page.click("#after")
    assert len(reader.prompts) == NUM + 1 - PER_PAGE
    assert reader.page.locator("#after").is_disabled()
    reader.page.select_option("#sort", "spatial")
    assert reader.prompts[0] == f"p{NUM - 1:02d}"
    reader.page.uncheck("input.arm[value=dvg]")
    assert reader.page.locator(".clip:visible").count() == PER_PAGE
    reader.page.click("#after")
    assert reader.page.locator(".clip:visible").count() == NUM + 1 - PER_PAGE


def test_a_mark_of_a_chart_leads_to_its_videos_also_on_a_later_page(reader: Reader) -> None:
    reader.page.locator(f'[aria-labelledby="map-title"] [data-go="p{NUM - 2:02d} · seed 0"] .dot').click()
    assert reader.page.locator("#prompts").is_visible()
    assert reader.page.locator(".aimed .id").inner_text() == f"p{NUM - 2:02d} · seed 0"
    reader.page.go_back()
    assert reader.page.locator("#overview").is_visible()


def test_costs_and_tabs_are_chosen_by_click_key_and_address(reader: Reader, page_file: Path) -> None:
    assert reader.page.locator("#cost-1").is_visible()
    reader.page.locator(".choice").nth(1).click()
    assert not reader.page.locator("#cost-1").is_visible()
    assert reader.page.locator("#cost-2").is_visible()
    reader.page.focus("#tab-overview")
    reader.page.keyboard.press("ArrowLeft")
    assert reader.page.locator("#failures").is_visible()
    assert "out of memory" in reader.page.inner_text("#failures")
    reader.page.goto(page_file.as_uri() + "#vbench")
    reader.page.reload()
    assert reader.page.locator("#vbench .radar").is_visible()


def test_words_of_a_prompt_are_shown_and_never_run(reader: Reader) -> None:
    reader.turn_to("prompts")
    assert '<img src=x onerror="document.title=1">' in reader.page.locator(".prompt h3").nth(1).inner_text()
    assert reader.page.title() == "demo · report"


def test_without_scripts_the_first_prompts_and_every_part_are_there(browser: playwright.Browser, page_file: Path) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(page_file.as_uri())
    assert page.locator(".tabpanel:visible").count() == 5
    assert page.locator(".prompt:visible").count() == PER_PAGE
    context.close()
