"""The contact sheet: arms as columns, prompts as rows, a few frames of every video, in one PNG."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from experiments.report.charts import thinned
from experiments.report.clips import Clip, Prompt
from experiments.report.lettering import Font, fitted, lettered, wrapped
from experiments.report.material import Home
from orchestrator.files import write_atomic
from orchestrator.mistakes import RunError
from stages.video import read_frames

MOST_PROMPTS, MOST_ARMS = 12, 8
NUM_FRAMES = 3
"""Of a video: its first, its last, and evenly between them."""
MOST_PIXELS = 150
"""Longer side of a frame on the sheet."""
MARGIN, GAP, TEXT, HEAD = 20, 3, 230, 34
PAPER, INK, SOFT, HOLE = "#ffffff", "#16181d", "#5b616e", "#eceef1"
_LINE = 18
"""Pixels from one line of text to the next."""


def write_sheet(path: Path, prompts: Sequence[Prompt], homes: Mapping[str, Home], arms: Sequence[str]) -> bool:
    """Whether there was anything to show. Of many prompts, some evenly chosen; a video that cannot be read is a named hole."""
    shown = chosen(prompts)
    if not shown:
        return False
    buffer = io.BytesIO()
    _drawn(shown, homes, list(arms)[:MOST_ARMS]).save(buffer, "PNG", optimize=True)
    write_atomic(path, buffer.getvalue())
    return True


def chosen(prompts: Sequence[Prompt]) -> list[Prompt]:
    """Of those with a video, where they suffice those that the most arms have answered."""
    num_made = {prompt.key: sum(clip.record is not None for clip in prompt.clips) for prompt in prompts}
    most = max(num_made.values(), default=0)
    whole = [prompt for prompt in prompts if num_made[prompt.key] == most > 0]
    some = [prompt for prompt in prompts if num_made[prompt.key] > 0]
    return thinned(whole if len(whole) >= MOST_PROMPTS else some, MOST_PROMPTS)


def _drawn(prompts: Sequence[Prompt], homes: Mapping[str, Home], arms: Sequence[str]) -> Image.Image:
    width, height = _frame_size(prompts)
    cell = NUM_FRAMES * (width + GAP) + MARGIN
    row = max(height, 96) + MARGIN
    sheet = Image.new("RGB", (2 * MARGIN + TEXT + len(arms) * cell, MARGIN + HEAD + len(prompts) * row), PAPER)
    draw = ImageDraw.Draw(sheet)
    for column, arm in enumerate(arms):
        told, font = lettered(arm, 17)
        draw.text((MARGIN + TEXT + column * cell, MARGIN), fitted(told, font, cell - MARGIN), INK, font)
    for index, prompt in enumerate(prompts):
        top = MARGIN + HEAD + index * row
        _tell(draw, prompt, top)
        for clip in prompt.clips:
            if clip.arm in arms:
                _put(sheet, clip, homes, (MARGIN + TEXT + arms.index(clip.arm) * cell, top), (width, height))
    return sheet


def _frame_size(prompts: Sequence[Prompt]) -> tuple[int, int]:
    """(width, height) of a frame on the sheet: the first video's shape."""
    record = next(clip.record for prompt in prompts for clip in prompt.clips if clip.record)
    share = MOST_PIXELS / max(record.width, record.height)
    return max(1, round(record.width * share)), max(1, round(record.height * share))


def _tell(draw: ImageDraw.ImageDraw, prompt: Prompt, top: int) -> None:
    text, font = lettered(prompt.text or prompt.prompt_id, 13)
    lines = wrapped(text, font, TEXT - MARGIN, 4)
    _write(draw, lines, (MARGIN, top), INK, font)
    seed = f", seed {prompt.seed}"
    name, font = lettered(prompt.prompt_id, 12)
    short = fitted(name, font, round(TEXT - MARGIN - font.getlength(seed))) + seed
    draw.text((MARGIN, top + _LINE * len(lines) + 4), short, SOFT, font)


def _write(draw: ImageDraw.ImageDraw, lines: Sequence[str], at: tuple[int, int], colour: str, font: Font) -> None:
    for index, line in enumerate(lines):
        draw.text((at[0], at[1] + _LINE * index), line, colour, font)


def _put(sheet: Image.Image, clip: Clip, homes: Mapping[str, Home], at: tuple[int, int], size: tuple[int, int]) -> None:
    frames, trouble = _frames(clip, homes)
    for index, frame in enumerate(frames):
        tile = frame.resize(_within(frame.size, size), Image.Resampling.LANCZOS)
        left = at[0] + index * (size[0] + GAP)
        sheet.paste(tile, (left + (size[0] - tile.width) // 2, at[1] + (size[1] - tile.height) // 2))
    if trouble:
        right = at[0] + NUM_FRAMES * (size[0] + GAP) - GAP
        draw = ImageDraw.Draw(sheet)
        draw.rectangle((*at, right, at[1] + size[1]), HOLE)
        text, font = lettered(trouble, 13)
        lines = wrapped(text, font, right - at[0] - 20, max(1, (size[1] - 12) // _LINE))
        _write(draw, lines, (at[0] + 10, at[1] + 8), SOFT, font)


def _within(size: tuple[int, int], most: tuple[int, int]) -> tuple[int, int]:
    share = min(most[0] / size[0], most[1] / size[1])
    return max(1, round(size[0] * share)), max(1, round(size[1] * share))


def _frames(clip: Clip, homes: Mapping[str, Home]) -> tuple[list[Image.Image], str]:
    """The frames, or why there are none."""
    if clip.record is None:
        return [], f"given up: {clip.error}" if clip.error else "no video"
    home = homes[clip.record.item_key]
    last = clip.record.num_frames - 1
    wanted = {round(last * index / (NUM_FRAMES - 1)) for index in range(NUM_FRAMES)}
    try:
        with home.store.fetched(home.video) as path:
            found = [Image.fromarray(frame) for index, frame in enumerate(read_frames(path)) if index in wanted]
    except FileNotFoundError:
        return [], "the video file is missing"
    except (ValueError, OSError, RunError) as error:
        return [], f"the video cannot be read: {error}"
    return found, "" if found else "the video has no frames"
