"""Prompts written longer for the model's sake: the videos are made of the longer ones and evaluated under the originals."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping, Sequence

from orchestrator.prompts import Prompt, find_file, looked_in
from orchestrator.suite_files import load_suite
from orchestrator.suites import Suite


def extended_prompts(
    source: str, prompts: Sequence[Prompt], suite: Suite | None, base: pathlib.Path, mistakes: list[str]
) -> list[Prompt]:
    """The prompts with their longer forms in place, ids as before; what is wrong with the file is appended to ``mistakes``."""
    path = find_file(source, base)
    if path is None:
        mistakes.append(f"extended: file {source!r} does not exist ({looked_in(base)})")
        return list(prompts)
    try:
        longer = _read(path, [prompt.prompt for prompt in prompts], suite)
    except (OSError, ValueError) as error:
        mistakes.append(f"extended: {source!r}: {error}")
        return list(prompts)
    if left := [prompt.prompt for prompt in prompts if prompt.prompt not in longer]:
        mistakes.append(
            f"extended: {source!r} has no longer form of {len(left)} of {len(prompts)} prompts, the first {left[0]!r}"
        )
    return [_extended(prompt, longer.get(prompt.prompt, prompt.prompt)) for prompt in prompts]


def _extended(prompt: Prompt, longer: str) -> Prompt:
    return prompt.model_copy(update={"prompt": longer, "original": prompt.original or prompt.prompt})


def _read(path: pathlib.Path, originals: Sequence[str], suite: Suite | None) -> Mapping[str, str]:
    """Longer forms by their originals. Raises ValueError for a file that goes with neither the prompts nor their suite."""
    lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").split("\n") if line.strip()]
    if path.suffix == ".jsonl":
        return dict(_pair(line, number) for number, line in enumerate(lines, 1))
    aligned = [list(originals), *(_lists(suite) if suite else ())]
    for texts in aligned:
        if len(texts) == len(lines):
            return dict(reversed(list(zip(texts, lines, strict=True))))  # of a prompt that is there twice, the first
    numbers = " or ".join(dict.fromkeys(str(len(texts)) for texts in aligned))
    raise ValueError(f"it has {len(lines)} lines; it needs one for each of {numbers} prompts")


def _lists(suite: Suite) -> list[list[str]]:
    """The suite's own lines, and those of the whole that it is a part of: VBench's longer lists go with the whole."""
    whole = suite if suite.scheme != "vbench" else load_suite("vbench")
    return [[entry.prompt for entry in each.entries] for each in (suite, whole)]


def _pair(line: str, number: int) -> tuple[str, str]:
    row = json.loads(line)
    if not isinstance(row, dict) or not all(isinstance(row.get(key), str) and row[key].strip() for key in ("original", "prompt")):
        raise ValueError(f"line {number} must be {{'original': ..., 'prompt': ...}}")
    return row["original"], row["prompt"]
