"""Boundaries of clips on disk: one file per item, replaced at every stage boundary, removed when its video is there.

A file is in safetensors format: the packed boundary's arrays, and as metadata everything else with a digest of both. A packed
condition holds bfloat16 and float16 as the float32 of the same values beside the name of their type, so nothing is lost.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import logging
import os
import time
import uuid
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as serialized

from orchestrator.paths import file_name
from orchestrator.types import Action, Decision, Past, Phase

log = logging.getLogger(__name__)

FORMAT = "dvg boundary 1"
ENDING = ".safetensors"
NUM_READERS = 8
ARRAY = "$array"
"""The key of a mapping that stands for an array, by name."""

Packed = dict[str, Any]
"""A boundary as numpy arrays, numbers and frozen values."""


class CheckpointLost(ValueError):
    """The file is gone, cannot be read, or is of something else."""


@dataclass(frozen=True)
class Saved:
    """A boundary on disk, of at least ``stop`` stages of an item's clip. It may travel to any process that sees the folder."""

    path: Path
    item_key: str
    stop: int
    action: Action


@dataclass(frozen=True)
class Found:
    """What the file of an item says of itself."""

    item_key: str
    decision: Decision
    stop: int
    past: Past
    latency_s: float
    """From the start of the sketch until the boundary was saved."""
    handle: Saved

    @property
    def timings_s(self) -> dict[str, float]:
        """Of all that led there."""
        return self.past.timings_s

    @property
    def phases(self) -> tuple[Phase, ...]:
        """Those after the sketch, one for each stage."""
        begin = self.stop - len(self.past.widths)
        return tuple(Phase(begin + k, width, "as it was run before") for k, width in enumerate(self.past.widths, start=1))


@dataclass(frozen=True)
class _Head:
    item_key: str
    stop: int
    decision: Decision
    past: Past
    saved_s: float
    """Unix time."""
    made_by: dict[str, str]
    boundary: dict[str, Any]
    """The rest of what was packed."""
    sha256: str
    """Of the arrays."""


class Checkpoints:
    """The files of one run. Whoever saves does not make the folder, so that a machine without it leaves nothing behind."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def open(self, wanted: Iterable[str]) -> dict[str, Found]:
        """Make the folder, and list it once: the boundaries of ``wanted`` items by key. All else is removed.

        Every file is read and checked, so that what is found here can be loaded.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(NUM_READERS) as readers:
            found = list(readers.map(self._find_whole, self._sweep(wanted)))
        return {one.item_key: one for one in found if one is not None}

    def close(self, wanted: Iterable[str]) -> None:
        """Once nobody saves any more: what came late goes too, and so does a folder that nothing is left in."""
        if self.root.is_dir() and not self._sweep(wanted):
            with contextlib.suppress(OSError):  # of a worker that is not gone yet
                self.root.rmdir()

    def _sweep(self, wanted: Iterable[str]) -> list[str]:
        """Remove the files of other items and those that were never whole; the keys of what is left."""
        names = {file_name(key) + ENDING: key for key in wanted}
        present = [entry.name for entry in os.scandir(self.root) if entry.is_file(follow_symlinks=False)]
        for name in set(present) - names.keys():
            (self.root / name).unlink(missing_ok=True)
        return [names[name] for name in present if name in names]

    def save(self, item_key: str, packed: Packed, made_by: Mapping[str, str] | None = None) -> None:
        """Replace the item's file, whole or not at all. Raises OSError, and leaves nothing behind."""
        arrays: dict[str, np.ndarray[Any, Any]] = {}
        rest = _plain({key: value for key, value in packed.items() if key not in ("decision", "past")}, "", arrays)
        head = _Head(
            *(item_key, packed["stage"], packed["decision"], packed["past"], time.time()),
            *(dict(made_by or {}), rest, _digest(arrays)),
        )
        text = _head_form().dump_json(head).decode()
        metadata = {"format": FORMAT, "head": text, "sha256": hashlib.sha256(text.encode()).hexdigest()}
        self._write(self._path(item_key), serialized(arrays, metadata))

    def find(self, item_key: str) -> Found | None:
        """What there is of an item, by the head of its file. One that cannot be read is removed."""
        return self._find(item_key, whole=False)

    def remove(self, item_key: str) -> None:
        self._path(item_key).unlink(missing_ok=True)

    def _path(self, item_key: str) -> Path:
        return self.root / f"{file_name(item_key)}{ENDING}"

    def _write(self, path: Path, data: bytes) -> None:
        draft = path.with_name(f".{path.name}.{uuid.uuid4().hex}")  # of its own: another attempt may be writing too
        try:
            with draft.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(draft, path)
        except OSError:
            draft.unlink(missing_ok=True)
            raise

    def _find_whole(self, item_key: str) -> Found | None:
        return self._find(item_key, whole=True)

    def _find(self, item_key: str, whole: bool) -> Found | None:
        path = self._path(item_key)
        try:
            head, _ = _read(path, arrays=whole)
            _require(head.item_key == item_key, f"it is of item {head.item_key!r}")
        except FileNotFoundError:
            return None
        except ValueError as problem:
            log.warning("%s; %s is made from the start", problem, item_key)
            path.unlink(missing_ok=True)
            return None
        except OSError as problem:
            log.warning("checkpoint %s cannot be read (%s); %s is made from the start", path, problem, item_key)
            return None
        handle = Saved(path, item_key, head.stop, head.decision.action)
        return Found(item_key, head.decision, head.stop, head.past, head.saved_s - head.past.began_s, handle)


def load(saved: Saved) -> Packed:
    """The packed boundary, as it was or farther on. Raises CheckpointLost; a file that is not whole is removed."""
    try:
        head, arrays = _read(saved.path, arrays=True)
    except OSError as problem:
        raise CheckpointLost(f"checkpoint {saved.path} of item {saved.item_key} cannot be read: {problem}") from problem
    except ValueError as problem:
        saved.path.unlink(missing_ok=True)
        raise CheckpointLost(f"{problem}; item {saved.item_key} is made from the start") from problem
    if (head.item_key, head.decision.action) != (saved.item_key, saved.action) or head.stop < saved.stop:
        raise CheckpointLost(f"checkpoint {saved.path} of item {saved.item_key} was replaced by another attempt's")
    lain_s = time.time() - head.saved_s
    past = dataclasses.replace(head.past, began_s=head.past.began_s + lain_s)
    return {**_whole(head.boundary, arrays), "decision": head.decision, "past": past}


def _read(path: Path, arrays: bool) -> tuple[_Head, dict[str, np.ndarray[Any, Any]]]:
    """The head, checked, and the arrays if asked for. Raises ValueError for a file that is not whole, OSError."""
    try:
        with safe_open(path, "np") as file:
            metadata = file.metadata() or {}
            _require(metadata.get("format") == FORMAT, f"its format is {metadata.get('format')!r}, not {FORMAT!r}")
            text = metadata.get("head", "")
            _require(hashlib.sha256(text.encode()).hexdigest() == metadata.get("sha256"), "its head was changed")
            head: _Head = _head_form().validate_json(text)
            found = {name: file.get_tensor(name) for name in file.keys()} if arrays else {}  # noqa: SIM118
        _require(not arrays or _digest(found) == head.sha256, "its arrays were changed")
    except (SafetensorError, ValueError) as problem:
        raise ValueError(f"checkpoint {path} is not whole: {problem}") from problem
    return head, found


@cache
def _head_form() -> TypeAdapter[_Head]:
    return TypeAdapter(_Head)


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise ValueError(otherwise)


def _plain(value: Any, name: str, arrays: dict[str, np.ndarray[Any, Any]]) -> Any:
    """``value`` ready for JSON; its arrays are put into ``arrays``, named by where they were."""
    if isinstance(value, np.ndarray):
        arrays[name] = np.asarray(value, order="C")
        return {ARRAY: name}
    if isinstance(value, Mapping):
        return {key: _plain(part, f"{name}.{key}" if name else key, arrays) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part, f"{name}.{place}", arrays) for place, part in enumerate(value)]
    return value


def _whole(value: Any, arrays: Mapping[str, np.ndarray[Any, Any]]) -> Any:
    """Inverse of :func:`_plain`, except that tuples have become lists."""
    if isinstance(value, dict):
        return arrays[value[ARRAY]] if value.keys() == {ARRAY} else {key: _whole(part, arrays) for key, part in value.items()}
    return [_whole(part, arrays) for part in value] if isinstance(value, list) else value


def _digest(arrays: Mapping[str, np.ndarray[Any, Any]]) -> str:
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(array.data)
    return digest.hexdigest()
