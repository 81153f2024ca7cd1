"""Where a model's weights are: a folder in diffusers format, or a repository of the hub (its cache, or a download).

Loads no torch. A repository is looked for in the local cache first; ``HF_TOKEN`` is read from the environment and kept nowhere.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

from orchestrator.geometry import ModelGeometry
from stages.models import checkpoint

REPOSITORY = re.compile(r"(?P<name>\w[\w.-]*/\w[\w.-]*)(@(?P<revision>[\w./-]+))?")
ORIGINAL_FORMATS = ("*.pth", "*.pt", "*.ckpt", "*.safetensors", "*.gguf")
"""Files at the top of a folder that show another format than diffusers'."""
NUM_SAMPLES, SAMPLE_BYTES = 64, 1 << 14
"""What a fingerprint reads of a large file: 1 MiB in all."""


@dataclass(frozen=True)
class Repository:
    """A repository of the hub. ``revision``: branch, tag or commit; None: the main branch."""

    name: str
    revision: str | None = None

    def __str__(self) -> str:
        return f"{self.name}@{self.revision}" if self.revision else self.name


def repository(weights: str) -> Repository | None:
    """The repository that ``org/name`` or ``org/name@revision`` names; None for the path of a folder or file."""
    match = None if Path(weights).exists() else REPOSITORY.fullmatch(weights)
    return Repository(match["name"], match["revision"]) if match else None


def find_weights(geometry: ModelGeometry, weights: str | None, parts: Set[str] = checkpoint.PARTS) -> Path:
    """The folder that ``weights`` names, with the weights of ``parts`` at least, downloaded if need be.

    Raises ValueError, with what to do, if it holds no such model.
    """
    if weights is None:
        raise ValueError(needs_weights(geometry))
    found = repository(weights)
    if found is None:
        folder = Path(weights)
    else:
        folder = snapshot(found, checkpoint.patterns(geometry, parts), geometry.hub)
        if checkpoint.mistakes(geometry, folder, parts):  # a cache that was filled in part may not know that it is incomplete
            folder = download(found, checkpoint.patterns(geometry, parts), geometry.hub)
    if wrong := folder_mistakes(geometry, weights, folder, parts):
        raise ValueError("; ".join(wrong))
    return folder


def cached(weights: str) -> Path | None:
    """The folder of ``weights`` as far as it is on this disk; None if nothing of it is."""
    from huggingface_hub import try_to_load_from_cache

    source = repository(weights)
    if source is None:
        return Path(weights)
    index = try_to_load_from_cache(source.name, checkpoint.INDEX, revision=source.revision)
    return Path(index).parent if isinstance(index, str) else None


def check_weights(geometry: ModelGeometry, weights: str | None) -> tuple[str | None, list[str]]:
    """``weights`` made absolute or pinned to a commit, and everything that is wrong with them.

    Of a repository only the small configuration files are fetched here.
    """
    if weights is None:
        return None, [needs_weights(geometry)]
    found = repository(weights)
    if found is None:
        return str(Path(weights).absolute()), folder_mistakes(geometry, weights, Path(weights))
    try:
        folder = snapshot(found, checkpoint.CONFIGS, geometry.hub)
    except ValueError as error:
        return weights, [f"{error}; no folder {weights!r} is here either"]
    wrong = checkpoint.mistakes(geometry, folder, frozenset())
    return str(Repository(found.name, folder.name)), [f"weights {weights!r}: {line}" for line in wrong]


def needs_weights(geometry: ModelGeometry) -> str:
    known = f" (for example {geometry.hub})" if geometry.hub else ""
    return (
        f"model {geometry.name!r} ships no weights; set weights to a repository of the hub{known} or a folder in diffusers format"
    )


def folder_mistakes(geometry: ModelGeometry, weights: str, folder: Path, parts: Set[str] = checkpoint.PARTS) -> list[str]:
    """Everything wrong with a local folder that is to hold ``parts``, each line naming what the user wrote."""
    if not (folder / checkpoint.INDEX).is_file():
        return [f"weights {weights!r} {_no_folder(folder)}{_published(geometry.hub)}"]
    return [f"weights {weights!r}: {line}" for line in checkpoint.mistakes(geometry, folder, parts)]


def _no_folder(folder: Path) -> str:
    rule = f"must be a folder in diffusers format (with a {checkpoint.INDEX}) or a repository id like org/name"
    if folder.is_file():
        return f"is a file; it {rule}"
    if not folder.is_dir():
        return f"is no folder here; it {rule}"
    odd = next((path.name for pattern in ORIGINAL_FORMATS for path in sorted(folder.glob(pattern))), None)
    return f"is in another format (it has {odd!r} at its top); it {rule}" if odd else f"has no {checkpoint.INDEX}; it {rule}"


def _published(hub: str) -> str:
    return f"; published: {hub} (`hf download {hub}`)" if hub else ""


def snapshot(source: Repository, patterns: Sequence[str], hub: str = "") -> Path:
    """The folder of a repository's matching files, from the local cache if they are all there."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return _fetch(source, tuple(patterns), local=True)
    except LocalEntryNotFoundError:
        return download(source, patterns, hub)


def download(source: Repository, patterns: Sequence[str], hub: str = "") -> Path:
    """Like :func:`snapshot`, asking the hub. Raises ValueError, in one line, when that fails; ``hub`` is one to suggest."""
    from huggingface_hub import errors

    try:
        return _fetch(source, tuple(patterns), local=False)
    except errors.GatedRepoError as error:
        why = "asks for permission: accept its terms on the hub and set HF_TOKEN"
        raise ValueError(f"repository {source} {why}") from error
    except errors.RevisionNotFoundError as error:
        raise ValueError(f"repository {source.name!r} has no revision {source.revision!r}") from error
    except errors.RepositoryNotFoundError as error:
        why = "is not on the hub, or is private (set HF_TOKEN)"
        raise ValueError(f"repository {source.name!r} {why}{_published(hub)}") from error
    except (OSError, errors.HTTPError, errors.HFValidationError) as error:  # type: ignore[attr-defined]
        why = "is not in the local cache and the hub cannot be reached"
        fetch = f"; on a machine with a network: `hf download {source.name}`, then copy its HF_HOME here or give the folder"
        raise ValueError(f"repository {source.name!r} {why}{fetch}{_published(hub if hub != source.name else '')}") from error


def _fetch(source: Repository, patterns: tuple[str, ...], *, local: bool) -> Path:
    """``token=False`` keeps a login stored on this machine out of it: only the environment's token counts."""
    from huggingface_hub import snapshot_download

    folder = snapshot_download(
        source.name,
        revision=source.revision,
        allow_patterns=list(patterns),
        local_files_only=local,
        token=os.environ.get("HF_TOKEN") or False,
    )
    return Path(folder)


def fingerprint(folder: Path, patterns: Sequence[str] = ("**/*",)) -> str:
    """Twelve hex digits of the files below ``folder`` that match: their names, sizes and bytes, of large files samples."""
    digest = hashlib.sha256()
    for file in sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}):
        digest.update(file.relative_to(folder).as_posix().encode())
        digest.update(str(file.stat().st_size).encode())
        for sample in _samples(file):
            digest.update(sample)
    return digest.hexdigest()[:12]


def _samples(file: Path) -> Iterator[bytes]:
    """All of a small file; of a large one pieces spread evenly: other weights of the same shapes differ in nearly every byte."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        if size <= NUM_SAMPLES * SAMPLE_BYTES:
            yield stream.read()
            return
        for index in range(NUM_SAMPLES):
            stream.seek((size - SAMPLE_BYTES) * index // (NUM_SAMPLES - 1))
            yield stream.read(SAMPLE_BYTES)
