"""VBench's prompts by name: the whole suite, its halves, one dimension's, or a stratified few, told apart by a digest.

``vbench[-PART][-filtered][@DIGEST]`` and ``vbench-i2v[-RATIO][@DIGEST]``. The suite's own list is in ``experiments/prompts``.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

TEMPORAL_DIMENSIONS = (
    *("subject_consistency", "background_consistency", "temporal_flickering", "motion_smoothness", "dynamic_degree"),
)
FRAME_DIMENSIONS = ("aesthetic_quality", "imaging_quality")
QUALITY_DIMENSIONS = TEMPORAL_DIMENSIONS + FRAME_DIMENSIONS
SEMANTIC_DIMENSIONS = (
    *("object_class", "multiple_objects", "human_action", "color", "spatial_relationship", "scene"),
    *("appearance_style", "temporal_style", "overall_consistency"),
)
DIMENSIONS = QUALITY_DIMENSIONS + SEMANTIC_DIMENSIONS
I2V_DIMENSIONS = ("camera_motion", "i2v_subject", "i2v_background")
I2V_QUALITY_DIMENSIONS = tuple(dim for dim in QUALITY_DIMENSIONS if dim != "temporal_flickering")
CUSTOM_DIMENSIONS = (*QUALITY_DIMENSIONS, "temporal_style", "overall_consistency")
"""Those that need nothing but the video and its prompt, and so take any prompt."""

NUM_VIDEOS = 5
NUM_CANDIDATES = 25
"""Videos of a temporal-flickering prompt that the static filter chooses among."""
RATIOS = ("16-9", "7-4", "8-5", "1-1")
PARTS: dict[str, tuple[str, ...]] = {
    "quality": QUALITY_DIMENSIONS,
    "semantic": SEMANTIC_DIMENSIONS,
    "temporal": TEMPORAL_DIMENSIONS,
    "frame": FRAME_DIMENSIONS,
    **{dim: (dim,) for dim in DIMENSIONS},
}
"""Named parts: every prompt that one of the dimensions asks for, and of its dimensions those."""


@dataclass(frozen=True)
class Entry:
    """One line of a suite. ``auxiliary`` is what a dimension must know beyond the prompt, by dimension."""

    prompt: str
    dimensions: tuple[str, ...]
    auxiliary: Mapping[str, Any] = field(default_factory=dict)
    image: str | None = None
    """File of the first frame, as the suite names it."""
    num_videos: int = NUM_VIDEOS

    def of(self, dimensions: Iterable[str]) -> Entry:
        """The same prompt for these dimensions only."""
        wanted = set(dimensions)
        return replace(self, dimensions=tuple(dim for dim in self.dimensions if dim in wanted))

    def row(self) -> list[Any]:
        """What tells it from another, for the digest."""
        return [self.prompt, sorted(self.dimensions), self.image, self.num_videos]


@dataclass(frozen=True)
class Suite:
    """Entries in the official order. A prompt may be in two of them: one video then serves both."""

    name: str
    entries: tuple[Entry, ...]
    scheme: str = "vbench"
    """How its totals are made: ``vbench``, ``vbench-i2v``, or ``custom`` for none."""
    static_filter: bool = False
    """Whether temporal flickering is measured on the first static videos among ``NUM_CANDIDATES``."""
    folder: str | None = None
    """Where the images are, of suites that have some."""

    @cached_property
    def digest(self) -> str:
        """Twelve hex digits of the list: prompts, dimensions, images and numbers of videos, in order."""
        rows = json.dumps([entry.row() for entry in self.entries], ensure_ascii=False)
        return hashlib.sha256(rows.encode()).hexdigest()[:12]

    @cached_property
    def prompts(self) -> dict[str, Entry]:
        """One entry for each prompt, in order: the dimensions of all of its entries, and the videos that suffice for each."""
        found: dict[str, Entry] = {}
        for entry in self.entries:
            found[entry.prompt] = _joined(found[entry.prompt], entry) if entry.prompt in found else entry
        return found

    @property
    def dimensions(self) -> tuple[str, ...]:
        """Those that some entry asks for."""
        return tuple(dict.fromkeys(dim for entry in self.entries for dim in entry.dimensions))

    @property
    def num_videos(self) -> int:
        """Files: a prompt of two entries counts once."""
        return sum(entry.num_videos for entry in self.prompts.values())

    @property
    def told(self) -> dict[str, Any]:
        """For manifests and people."""
        return {
            "name": self.name,
            "digest": self.digest,
            "entries": len(self.entries),
            "prompts": len(self.prompts),
            "asked_videos": sum(entry.num_videos for entry in self.entries),
            "videos": self.num_videos,
            "static_filter": self.static_filter,
        }


def _joined(one: Entry, other: Entry) -> Entry:
    return replace(
        one,
        dimensions=tuple(dict.fromkeys(one.dimensions + other.dimensions)),
        auxiliary={**one.auxiliary, **other.auxiliary},
        num_videos=max(one.num_videos, other.num_videos),
    )


def entries_of(data: Any, known: Sequence[str], where: str) -> tuple[Entry, ...]:
    """The entries of a ``*_full_info.json``. Raises ValueError for another form, or a dimension not in ``known``."""
    if not isinstance(data, list) or not data:
        raise ValueError(f"{where} holds no list of prompts")
    return tuple(_entry(row, known, f"{where}, entry {number}") for number, row in enumerate(data))


def _entry(row: Any, known: Sequence[str], where: str) -> Entry:
    if not isinstance(row, dict) or not isinstance(row.get("prompt_en"), str) or not isinstance(row.get("dimension"), list):
        raise ValueError(f"{where} has no 'prompt_en' and 'dimension'")
    if strange := [dim for dim in row["dimension"] if dim not in known]:
        raise ValueError(f"{where}: unknown dimension {strange[0]!r}; choices: {', '.join(known)}")
    return Entry(row["prompt_en"], tuple(row["dimension"]), row.get("auxiliary_info") or {}, row.get("image_name"))


def part_of(whole: Suite, part: str) -> tuple[Entry, ...]:
    """The entries of a named part, or of the stratified few that a number asks for. Raises ValueError for another name."""
    if part.isdecimal():
        return stratified(whole, int(part))
    if part not in PARTS:
        raise ValueError(f"unknown part {part!r}; parts: {', '.join(PARTS)}, or a number of prompts")
    wanted = PARTS[part]
    return tuple(entry.of(wanted) for entry in whole.entries if set(wanted) & set(entry.dimensions))


def stratified(whole: Suite, number: int) -> tuple[Entry, ...]:
    """``number`` prompts, as many of each group of dimensions that share their prompts, drawn by the hash of their text.

    A smaller number's prompts are among a larger one's. Raises ValueError for fewer than one of each group, or too many.
    """
    strata = _strata(whole.entries)
    if not len(strata) <= number <= len(whole.prompts):
        raise ValueError(f"{number} prompts: a stratified part has {len(strata)} to {len(whole.prompts)} of them")
    chosen: set[str] = set()
    for prompt in _in_turn(strata):
        if len(chosen) == number:
            break
        chosen.add(prompt)
    return tuple(entry for entry in whole.entries if entry.prompt in chosen)


def _strata(entries: Iterable[Entry]) -> list[list[str]]:
    """The prompts of each group of dimensions, by the hash of their text: an order that nobody chose."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for entry in entries:
        groups.setdefault(entry.dimensions, []).append(entry.prompt)
    return [sorted(prompts, key=lambda text: hashlib.sha256(text.encode()).digest()) for prompts in groups.values()]


def _in_turn(strata: Sequence[Sequence[str]]) -> Iterator[str]:
    for rank in range(max(map(len, strata))):
        yield from (prompts[rank] for prompts in strata if rank < len(prompts))


def filtered(entries: Iterable[Entry]) -> tuple[Entry, ...]:
    """With as many videos as the static filter chooses among where temporal flickering is measured."""
    return tuple(replace(e, num_videos=NUM_CANDIDATES) if "temporal_flickering" in e.dimensions else e for e in entries)


CHOICES = (
    "vbench, vbench-quality, vbench-semantic, vbench-temporal, vbench-frame, vbench-<dimension>, vbench-<number of prompts>, "
    f"each also with -filtered; vbench-i2v, vbench-i2v-<{' or '.join(RATIOS)}>"
)


def is_suite(source: str) -> bool:
    """Whether a spec's ``prompts`` names a suite; anything with a suffix or a folder is a file."""
    return source == "vbench" or (source.startswith(("vbench-", "vbench@")) and not re.search(r"[./\\]", source))


def named(name: str, read: Callable[[str], Suite]) -> Suite:
    """The suite of a name; ``read`` gives the whole of ``vbench`` or of ``vbench-i2v-RATIO``.

    Raises ValueError for an unknown name, and where a digest was given and the list has another.
    """
    base, at, digest = name.partition("@")
    if not re.fullmatch(r"vbench(-[a-z0-9_-]+)?", base):
        raise ValueError(f"unknown suite {name!r}; choices: {CHOICES}")
    try:
        suite = _i2v(base, read) if base.startswith("vbench-i2v") else _t2v(base, read)
    except ValueError as error:
        raise ValueError(f"suite {name!r}: {error}") from error
    if at and not (digest and suite.digest.startswith(digest)):
        raise ValueError(f"suite {name!r}: its list has the digest {suite.digest}, so it is not the one that was asked for")
    return suite


def _t2v(base: str, read: Callable[[str], Suite]) -> Suite:
    whole, choose = read("vbench"), base.endswith("-filtered")
    part = base.removesuffix("-filtered").removeprefix("vbench").removeprefix("-")
    entries = part_of(whole, part) if part else whole.entries
    if choose and not any("temporal_flickering" in entry.dimensions for entry in entries):
        raise ValueError("the static filter is for temporal_flickering, which it does not ask for")
    return Suite(base, filtered(entries) if choose else entries, "vbench", choose)


def _i2v(base: str, read: Callable[[str], Suite]) -> Suite:
    ratio = base.removeprefix("vbench-i2v").removeprefix("-") or RATIOS[0]
    if ratio not in RATIOS:
        raise ValueError(f"unknown crop {ratio!r}; choices: {', '.join(RATIOS)}")
    return replace(read(f"vbench-i2v-{ratio}"), name=base)
