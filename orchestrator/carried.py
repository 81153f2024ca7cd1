"""What of a folder goes to the cluster with a job, and whether a spec's files are among it."""

from __future__ import annotations

import json
import logging
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.config import ArmOptions, SweepSpec
from orchestrator.prompts import Prompt, load_prompts
from orchestrator.submission import EXCLUDES
from orchestrator.suites import is_suite
from stages.models.lora import REMOTE
from stages.models.weights import repository

MAX_MIB = 512
"""Ray's limit for one package, which travels in one message."""
NUM_SHOWN = 5


@dataclass(frozen=True)
class Carried:
    """The files of ``root`` that travel, and their sizes in bytes by path relative to it."""

    root: Path
    sizes: Mapping[str, int]

    @property
    def mib(self) -> float:
        return sum(self.sizes.values()) / 2**20

    def mistakes(self) -> list[str]:
        """Nothing, or what makes the folder too large to send: Ray packs it without compression."""
        if self.mib < MAX_MIB:
            return []
        sizes: Counter[str] = Counter()
        for name, num_bytes in self.sizes.items():
            sizes[name.split("/")[0]] += num_bytes
        largest = ", ".join(f"{name} ({num_bytes / 2**20:.0f} MiB)" for name, num_bytes in sizes.most_common(NUM_SHOWN))
        return [
            f"the working folder {str(self.root)!r} is {self.mib:.0f} MiB and Ray takes {MAX_MIB}; largest: {largest}; "
            "list what a job does not need in .rayignore, or give a smaller --working-dir"
        ]

    def holds(self, path: Path) -> bool:
        """Whether a file, or something of a folder, travels."""
        name = path.relative_to(self.root).as_posix()
        return name in self.sizes or any(other.startswith(f"{name}/") for other in self.sizes)


def carried(root: Path) -> Carried:
    """What Ray would pack of a folder: its own walk, with .gitignore, .rayignore and our excludes."""
    from ray._private.runtime_env import packaging

    logging.getLogger(packaging.__name__).setLevel(logging.WARNING)  # or every ignore file is a line before the answer
    sizes: dict[str, int] = {}

    def take(path: Path) -> None:
        if path.is_file():
            sizes[path.relative_to(root).as_posix()] = path.stat().st_size

    excludes = [packaging._get_excludes(root, list(EXCLUDES))]
    ignored = os.environ.get("RAY_RUNTIME_ENV_IGNORE_GITIGNORE", "0") == "1"
    packaging._dir_travel(root, excludes, take, include_gitignore=not ignored)
    return Carried(root, sizes)


@dataclass(frozen=True)
class Needed:
    """A file or folder that a spec names. ``beside_spec``: looked for beside the spec first, then in the working folder."""

    key: str
    path: str
    beside_spec: bool = False


@dataclass
class Found:
    """``outside``: absolute paths, which every node must have; nobody can check that from here."""

    mistakes: list[str] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)


def needed(spec: SweepSpec, base: Path) -> list[Needed]:
    """Every path that a spec names, its prompts' images included; what is wrong with the prompts is not told here."""
    files = {"prompts": spec.prompts, "extended": spec.extended}
    found = [Needed(key, path, True) for key, path in files.items() if isinstance(path, str) and not is_suite(path)]
    prompts: Sequence[Prompt] = load_prompts(spec.prompts, base, [])
    found += [Needed("image", prompt.image, True) for prompt in prompts if prompt.image]
    found += [*_of_arm("", spec), *(need for name, arm in spec.arms.items() for need in _of_arm(f"arms.{name}.", arm))]
    found += [Needed(f"sweep.{key}", value, key.endswith("image")) for key, value in _swept(spec)]
    return list(dict.fromkeys(found))


def _of_arm(where: str, arm: ArmOptions) -> Iterator[Needed]:
    if arm.weights and repository(arm.weights) is None:
        yield Needed(f"{where}weights", arm.weights)
    if arm.calibration:
        yield Needed(f"{where}calibration", arm.calibration)
    if arm.image:
        yield Needed(f"{where}image", arm.image, True)
    for lora in arm.lora or ():
        if Path(lora.path).exists() or REMOTE.fullmatch(lora.path) is None:
            yield Needed(f"{where}lora", lora.path)


def _swept(spec: SweepSpec) -> Iterator[tuple[str, str]]:
    for key, values in spec.sweep.items():
        if key.split(".")[-1] in ("weights", "calibration", "image"):
            yield from ((key, value) for value in values if isinstance(value, str) and repository(value) is None)


def look(needs: Sequence[Needed], base: Path, files: Carried) -> Found:
    """Which of ``needs`` a job will not find in its copy of the folder."""
    found = Found()
    for need in needs:
        if os.path.isabs(need.path):
            _look_outside(need, files, found)
        elif "://" not in need.path:
            _look_inside(need, base, files, found)
    return found


def _look_outside(need: Needed, files: Carried, found: Found) -> None:
    if Path(need.path).is_relative_to(files.root):
        shorter = Path(need.path).relative_to(files.root)
        found.mistakes.append(f"{need.key}: {need.path!r} is elsewhere in a job, which has its own copy; write {str(shorter)!r}")
    else:
        found.outside.append(f"{need.key}: {need.path}")


def _look_inside(need: Needed, base: Path, files: Carried, found: Found) -> None:
    tried = [base / need.path, files.root / need.path] if need.beside_spec else [files.root / need.path]
    here = next((path for path in tried if os.path.exists(path)), None)
    where = f"{need.key}: {need.path!r}"
    if here is None:
        found.mistakes.append(f"{where} does not exist (looked in {', '.join(dict.fromkeys(str(p.parent) for p in tried))})")
    elif not (whole := Path(os.path.normpath(here))).is_relative_to(files.root):
        found.mistakes.append(f"{where} is outside the working folder {str(files.root)!r}, so the job does not get it")
    elif not files.holds(whole):
        found.mistakes.append(f"{where} is left out by .gitignore, .rayignore or {json.dumps(list(EXCLUDES))}")
