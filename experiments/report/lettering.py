"""Text in pictures: a font of this machine that has its characters, and lines that fit a width."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from typing import Any

from PIL import ImageFont

FONTS = (
    *(
        "NotoSansCJK-Regular.ttc",
        "NotoSansCJKsc-Regular.otf",
        "SourceHanSansSC-Regular.otf",
        "wqy-microhei.ttc",
        "wqy-zenhei.ttc",
    ),
    *("DroidSansFallbackFull.ttf", "PingFang.ttc", "Hiragino Sans GB.ttc", "Arial Unicode.ttf", "msyh.ttc", "malgun.ttf"),
    *("NotoSans-Regular.ttf", "DejaVuSans.ttf", "arial.ttf"),
)
"""Files that Linux, macOS and Windows have, those with the most scripts first; Pillow's own font has Latin letters alone."""
LACKING = "[not in this font]"
_NO_CHARACTER = "\uffff"

Font = Any
"""What Pillow draws with."""


def lettered(text: str, size: int) -> tuple[str, Font]:
    """``text`` as it can be drawn, and the font: Pillow's where it has all characters, else one that has the most.

    What none has stays as a note in its place.
    """
    plain = " ".join("".join(char if char.isprintable() else " " for char in text).split())
    font = max(fonts(size), key=lambda font: sum(has(font, char) for char in plain))
    parts = ((known, "".join(run)) for known, run in itertools.groupby(plain, lambda char: has(font, char)))
    return "".join(run if known else LACKING for known, run in parts), font


@functools.cache
def fonts(size: int) -> tuple[Font, ...]:
    """Pillow's own, then those that are found."""
    return (ImageFont.load_default(size), *_found(size))


def _found(size: int) -> Iterator[Font]:
    for name in FONTS:
        try:
            yield ImageFont.truetype(name, size)
        except OSError:
            continue


@functools.lru_cache(maxsize=8192)
def has(font: Font, char: str) -> bool:
    """Whether it draws the character as something else than the box of what it lacks."""
    try:
        drawn, box = font.getmask(char), font.getmask(_NO_CHARACTER)
    except UnicodeEncodeError:  # of Pillow's oldest font, which knows Latin-1
        return False
    return char == " " or (drawn.size, bytes(drawn)) != (box.size, bytes(box))


def wrapped(text: str, font: Font, width: int, most: int) -> list[str]:
    """At most ``most`` lines of no more than ``width`` pixels; the last one of what is cut off ends in an ellipsis.

    Lines break between words, and within a word that has no room on a line of its own, as those of scripts without spaces.
    """
    lines = [""]
    for word in text.split(" "):
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width:
            lines[-1] = longer
            continue
        lines += [""] if lines[-1] else []
        for char in word:
            if lines[-1] and font.getlength(lines[-1] + char) > width:
                lines.append("")
            lines[-1] += char
    return lines if len(lines) <= most else [*lines[: most - 1], fitted(lines[most - 1] + " …", font, width)]


def fitted(text: str, font: Font, width: int) -> str:
    """``text``, cut with an ellipsis where it is wider than ``width`` pixels."""
    kept = text
    while font.getlength(kept) > width and len(kept) > 2:
        kept = kept.removesuffix("…").rstrip()[:-1] + "…"
    return kept
