"""Text on the contact sheet: no boxes instead of letters, and nothing beyond its column."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import ImageFont

from experiments.report import lettering
from experiments.report.lettering import LACKING, fitted, has, lettered, wrapped

PLAIN = ImageFont.load_default(13)
WORDS = st.text(string.ascii_letters + " ", min_size=1, max_size=80).map(lambda text: " ".join(text.split()) or "x")


class Chinese:
    """A font of Latin and two Chinese letters."""

    def getmask(self, char: str) -> bytes:
        class Mask(bytes):
            size = (len(char), 1)

        return Mask(char.encode() if char.isascii() or char in "红猫" else b"box")


@pytest.fixture
def chinese(monkeypatch: pytest.MonkeyPatch) -> Chinese:
    font = Chinese()
    monkeypatch.setattr(lettering, "fonts", lambda size: (PLAIN, font))
    return font


def test_a_font_that_has_the_letters_is_taken_and_pillow_s_own_for_latin(chinese: Chinese) -> None:
    assert lettered("红猫 runs", 13) == ("红猫 runs", chinese)
    assert lettered("a cat runs", 13) == ("a cat runs", PLAIN)


def test_letters_that_no_font_has_are_told_instead_of_boxes(chinese: Chinese, monkeypatch: pytest.MonkeyPatch) -> None:
    assert lettered("红猫狗狗 runs\n\tfast", 13)[0] == f"红猫{LACKING} runs fast"
    monkeypatch.setattr(lettering, "fonts", lambda size: (PLAIN,))
    assert lettered("a 红猫 runs", 13) == (f"a {LACKING} runs", PLAIN)
    assert all(has(PLAIN, char) for char in string.printable.strip())
    assert not has(PLAIN, "中")


@given(WORDS, st.integers(40, 200), st.integers(1, 4))
def test_lines_fit_and_lose_nothing_unless_they_say_so(text: str, width: int, most: int) -> None:
    lines = wrapped(text, PLAIN, width, most)
    assert len(lines) <= most
    assert max(map(PLAIN.getlength, lines)) <= width
    if lines[-1].endswith("…"):
        assert text.replace(" ", "").startswith("".join(lines).replace(" ", "").rstrip("…"))
    else:
        assert "".join(lines).replace(" ", "") == text.replace(" ", "")


@given(WORDS, st.integers(40, 200))
def test_what_is_cut_fits_and_says_so(text: str, width: int) -> None:
    cut = fitted(text, PLAIN, width)
    assert cut == text or (cut.endswith("…") and PLAIN.getlength(cut) <= width)
    assert (cut == text) == (PLAIN.getlength(text) <= width)
