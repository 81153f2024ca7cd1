"""The page of a comparison in Chromium: it sorts, fits, asks for nothing and tells no error."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from experiments.compare.comparison import compare
from experiments.compare.page import html_text
from experiments.compare.sources import read_runs
from tests.unit.comparing import arm_records, write_run

playwright = pytest.importorskip("playwright.sync_api", reason="needs Playwright (the dev extra)")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")]

FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-component-update"]


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("browser")
    write_run(root / "demo", arm_records(), vbench={"full": 0.97, "dvg": 0.965, "tiny": 0.975})
    write_run(root / "large", arm_records(("full", "dvg"), height=96, width=96))
    runs = read_runs([str(root / "demo"), str(root / "large")])
    (root / "page.html").write_text(html_text(compare(runs)))
    return root / "page.html"


@pytest.fixture(scope="module")
def browser() -> Iterator[playwright.Browser]:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS, env={**os.environ, "DBUS_SESSION_BUS_ADDRESS": ""})
        yield browser
        browser.close()


@pytest.mark.parametrize(("width", "theme"), [(1400, "light"), (390, "dark")])
def test_the_page_sorts_fits_and_asks_for_nothing(browser: playwright.Browser, page_file: Path, width: int, theme: str) -> None:
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=theme)
    told: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: told.append(message.text))
    page.on("pageerror", lambda error: told.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(page_file.as_uri())

    def arms() -> list[str]:
        return [text.strip() for text in page.locator("#arms tbody th").all_inner_texts()]

    given = arms()
    page.click("#arms th:has-text('speedup') >> nth=0")
    assert arms()[:3] == ["demo/full", "demo/dvg", "demo/tiny"]
    page.click("#arms th:has-text('speedup') >> nth=0")
    assert arms()[:3] == ["demo/tiny", "demo/dvg", "demo/full"]
    assert sorted(arms()) == sorted(given)
    assert set(arms()[3:]) == {"large/full", "large/dvg"}  # without a speedup: last either way
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert page.locator("svg").count() == 7
    assert (told, asked) == ([], [page_file.as_uri()])
    page.close()
