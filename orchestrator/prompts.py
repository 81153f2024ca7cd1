"""Prompts from a list, a text file, a JSONL file or a suite, each with an id that is safe as a file name."""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import re
from collections import Counter
from collections.abc import Sequence
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from orchestrator.mistakes import from_validation, unknown
from orchestrator.suite_files import load_suite
from orchestrator.suites import DIMENSIONS, I2V_DIMENSIONS, Entry, Suite, is_suite

MAX_SLUG = 40

Seed = Annotated[int, Field(ge=0, lt=2**63)]
"""What torch's generators take."""


def _known(dimension: str) -> str:
    if dimension not in (known := (*DIMENSIONS, *I2V_DIMENSIONS)):
        raise ValueError(unknown("dimension of VBench:", dimension, known))
    return dimension


class Prompt(BaseModel):
    """One prompt. ``id`` defaults to a slug of the text with a short hash; ``seed`` and ``image`` go before the spec's."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    prompt: str = Field(min_length=1)
    """What the video shows."""
    id: str = Field("", pattern=r"^[A-Za-z0-9_.-]*$", max_length=80)
    """Names its videos' folder; empty: made of the text and a hash of it."""
    seed: Seed | None = None
    """Instead of the spec's seeds."""
    image: str | None = Field(None, min_length=1)
    """First frame of the video, for models that take one; relative to the spec's folder or the working directory."""
    deadline_s: float | None = Field(None, gt=0, allow_inf_nan=False)
    """Seconds from the start of its sketch to its video, where the sizing rule is ``deadline``; goes before the rule's own."""
    num_videos: int | None = Field(None, ge=1)
    """Videos of it, with seeds 0, 1 and so on, unless it or the spec says which seeds; suites ask for 5."""
    dimensions: tuple[Annotated[str, AfterValidator(_known)], ...] = ()
    """What of VBench its videos are for; suites say it."""
    original: str | None = Field(None, min_length=1)
    """The prompt that this one was written from: its videos are evaluated under that one's name."""


def prompt_id(text: str, image: str | None = None) -> str:
    """For example ``a-red-circle-drifting-left-3f2a9c``: readable, unique to the text and image, safe as a file name."""
    slug = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:MAX_SLUG].strip("-")
    whole = text if image is None else f"{text}\0{image}"
    return f"{slug}-{hashlib.sha256(whole.encode()).hexdigest()[:6]}".strip("-")


def load_prompts(source: Sequence[Prompt] | str, base: pathlib.Path, mistakes: list[str]) -> list[Prompt]:
    """The prompts of a spec, ids filled in; what is wrong with them is appended to ``mistakes``."""
    raw = _named(source, base, mistakes) if isinstance(source, str) else source
    prompts = [_with_id(prompt) for prompt in raw if prompt.prompt.strip()]
    if len(prompts) < len(raw):
        mistakes.append("prompts: a prompt must not be empty")
    counts = Counter((p.id, p.seed) for p in prompts)
    mistakes.extend(f"prompts: id {name!r} is used {n} times; ids must be unique" for (name, _), n in counts.items() if n > 1)
    if not raw and not mistakes:
        mistakes.append("prompts: at least one prompt is needed")
    return prompts


def _with_id(prompt: Prompt) -> Prompt:
    """One that was written from another is known by the other's id, so that both are found under it."""
    if prompt.id:
        return prompt
    return prompt.model_copy(update={"id": prompt_id(prompt.original or prompt.prompt, prompt.image)})


def _named(source: str, base: pathlib.Path, mistakes: list[str]) -> Sequence[Prompt]:
    suite = suite_named(source, mistakes)
    if suite is not None:
        return [_of_suite(entry, suite) for entry in suite.prompts.values()]
    return [] if is_suite(source) else _from_file(source, base, mistakes)


def suite_named(source: Sequence[Prompt] | str, mistakes: list[str]) -> Suite | None:
    """The suite that a spec's ``prompts`` names; None for anything else, and for one that is wrong."""
    if not isinstance(source, str) or not is_suite(source):
        return None
    try:
        return load_suite(source)
    except ValueError as error:
        mistakes.append(f"prompts: {error}")
        return None


def _of_suite(entry: Entry, suite: Suite) -> Prompt:
    """The id comes from the image's name, not from where the user keeps it."""
    image = entry.image and suite.folder and os.path.join(suite.folder, entry.image)
    return Prompt(
        prompt=entry.prompt,
        id=prompt_id(entry.prompt, entry.image),
        image=image,
        num_videos=entry.num_videos,
        dimensions=entry.dimensions,
    )


def find_file(name: str, base: pathlib.Path) -> pathlib.Path | None:
    """The file that a spec in the folder ``base`` means: beside it, or else in the working directory."""
    tried = (base / name, pathlib.Path.cwd() / name)  # an absolute name stays as it is
    return next((path for path in tried if os.path.isfile(path)), None)  # False, not an error, for a name too long


def looked_in(base: pathlib.Path) -> str:
    """For a file that :func:`find_file` did not find."""
    return f"looked in {', '.join(dict.fromkeys([str(base), str(pathlib.Path.cwd())]))}"


def _from_file(source: str, base: pathlib.Path, mistakes: list[str]) -> list[Prompt]:
    path = find_file(source, base)
    if path is None:
        mistakes.append(
            f"prompts: file {source!r} does not exist ({looked_in(base)}); "
            "give a list of prompts, a text file with one prompt a line, or a .jsonl file"
        )
        return []
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        mistakes.append(f"prompts: file {source!r} cannot be read as UTF-8 text: {error}")
        return []
    # Not splitlines(): a prompt may hold other line ends of Unicode.
    lines = [(number, line.strip()) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if path.suffix == ".jsonl":
        return [p for number, line in lines if (p := _from_json(line, f"{source}:{number}", mistakes))]
    return [Prompt(prompt=line) for _, line in lines if not line.startswith("#")]


def _from_json(line: str, where: str, mistakes: list[str]) -> Prompt | None:
    try:
        return Prompt.model_validate(json.loads(line))
    except json.JSONDecodeError as error:
        mistakes.append(f"prompts: {where} is not valid JSON: {error.msg}")
    except ValidationError as error:
        mistakes.extend(from_validation(error, Prompt, where))
    return None
