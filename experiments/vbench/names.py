"""The file names that VBench reads: ``{prompt}-{index}.mp4``."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping

from orchestrator.paths import file_name

MAX_NAME_BYTES = 255
"""Of one file name, on every common file system."""
SUFFIX = ".mp4"


def video_name(prompt: str, index: int) -> str:
    """Raises ValueError for a prompt that cannot be a file's name; all of VBench's can."""
    name = f"{prompt}-{index}{SUFFIX}"
    if "/" in prompt or "\0" in prompt or len(name.encode()) > MAX_NAME_BYTES:
        raise ValueError(f"prompt {prompt!r} is no file name: it holds '/', or is longer than {MAX_NAME_BYTES} bytes")
    return name


def parse_name(name: str) -> tuple[str, int]:
    """Prompt and index of a name. Raises ValueError for one of another form."""
    found = re.fullmatch(r"(?P<prompt>.+)-(?P<index>[0-9]+)" + re.escape(SUFFIX), name, re.DOTALL)
    if found is None:
        raise ValueError(f"video {name!r} is not named '{{prompt}}-{{index}}{SUFFIX}'")
    return found["prompt"], int(found["index"])


def stem_of(prompt: str, prompt_id: str) -> str:
    """What stands for a prompt in its videos' names: itself, or its id where it cannot be a file's name."""
    try:
        video_name(prompt, 999)
    except ValueError:
        return file_name(prompt_id)
    return prompt


def stems_of(prompts: Mapping[str, str]) -> dict[str, str]:
    """What stands for each prompt of a run in its videos' names, by its id: no two alike, whatever texts and ids there are.

    The first of a text has the text, others go by their ids. A prompt that is added at the end changes no other's.
    """
    stems: dict[str, str] = {}
    taken: set[str] = set()
    for name, prompt in prompts.items():
        stems[name] = next(stem for stem in _candidates(prompt, name) if stem not in taken)
        taken.add(stems[name])
    return stems


def _candidates(prompt: str, name: str) -> Iterator[str]:
    yield stem_of(prompt, name)
    yield file_name(name)
    yield from (f"{file_name(name)}~{number}" for number in itertools.count(2))
