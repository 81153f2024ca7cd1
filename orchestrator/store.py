"""Where the videos of a run are kept: a folder that every node sees, or a place behind a URL (s3://, gs://, ...) by fsspec.

Names are relative to the run and use forward slashes. Credentials are the environment's business, on every node.
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol, TypeVar
from urllib.parse import urlsplit

from orchestrator.files import move, told_when_full, write_atomic
from orchestrator.mistakes import ConfigError, RunError, without_password

Destination = Path | str
"""A file that a worker writes: a path on a file system that every node sees, or a URL."""

EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}
"""Extra of this package that brings the file system of a URL's scheme."""

PAUSES_S = (1.0, 4.0, 15.0)
"""Before each new try to reach a store, which has retried by itself already."""

NO_CREDENTIALS = frozenset({"NoCredentialsError", "PartialCredentialsError"})
"""Of botocore, which need not be installed: nothing in the environment says who asks."""

T = TypeVar("T")


class Store(Protocol):
    """Each method may raise RunError when the place cannot be reached, DiskFull when it has no room."""

    where: str
    """For people."""

    def target(self, name: str) -> Destination:
        """Where a worker writes the file, with :func:`staged`."""
        ...

    def read(self, name: str) -> bytes | None:
        """None: it is not there."""
        ...

    def put(self, name: str, data: bytes) -> None:
        """Whole or not at all, over what was there."""
        ...

    def create(self, name: str, data: bytes) -> bool:
        """False, with nothing changed, when the file is there: of many who try at once, one succeeds."""
        ...

    def move(self, source: str, target: str) -> None:
        """The target is whole whenever it is there. Raises FileNotFoundError without a source."""
        ...

    def remove(self, name: str) -> None:
        """Also when it is not there."""
        ...

    def sizes(self, folder: str) -> dict[str, int]:
        """Bytes of every file below a folder, by name."""
        ...

    def fetched(self, name: str) -> contextlib.AbstractContextManager[Path]:
        """The file on this machine, for as long as the context lasts. Raises FileNotFoundError."""
        ...


class FolderStore:
    """A folder on this machine or on a file system that the nodes share."""

    def __init__(self, root: Path) -> None:
        self.root, self.where = root, str(root)

    def target(self, name: str) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def read(self, name: str) -> bytes | None:
        try:
            return (self.root / name).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def put(self, name: str, data: bytes) -> None:
        write_atomic(self.root / name, data)

    def create(self, name: str, data: bytes) -> bool:
        path = self.target(name)
        draft = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")  # many may try at once
        try:
            with told_when_full(path, len(data)):
                draft.write_bytes(data)
                _link(draft, path, data)
        except FileExistsError:
            return False
        finally:
            draft.unlink(missing_ok=True)
        return True

    def move(self, source: str, target: str) -> None:
        try:
            move(self.root / source, self.root / target)
        except FileNotFoundError:
            move(self.root / source, self.target(target))

    def remove(self, name: str) -> None:
        (self.root / name).unlink(missing_ok=True)

    def sizes(self, folder: str) -> dict[str, int]:
        found: dict[str, int] = {}
        base = str(self.root / folder)
        for top, _, files in os.walk(base):
            below = f"{folder}{top[len(base) :]}/".lstrip("/")
            found |= {f"{below}{file}": os.stat(f"{top}/{file}").st_size for file in files}
        return found

    @contextlib.contextmanager
    def fetched(self, name: str) -> Iterator[Path]:
        path = self.root / name
        if not path.is_file():
            raise FileNotFoundError(name)
        yield path


def _link(draft: Path, path: Path, data: bytes) -> None:
    """Give a whole file its name. Raises FileExistsError. Some file systems know no links: a reader may then see it empty."""
    try:
        os.link(draft, path)
    except FileExistsError:
        raise
    except OSError:
        with path.open("xb") as file:
            file.write(data)


class UrlStore:
    """A place behind a URL. Files are put in one piece, so that a reader never sees half of one."""

    def __init__(self, url: str) -> None:
        self.where = url.rstrip("/")
        self._fs, self._root = _connect(self.where)

    def target(self, name: str) -> str:
        return f"{self.where}/{name}"

    def read(self, name: str) -> bytes | None:
        with contextlib.suppress(FileNotFoundError):
            return bytes(self._reach(name, lambda path: self._fs.cat_file(path), (FileNotFoundError,)))
        return None

    def put(self, name: str, data: bytes) -> None:
        self._reach(name, lambda path: self._fs.pipe_file(path, data))

    def create(self, name: str, data: bytes) -> bool:
        try:
            self._reach(name, lambda path: self._fs.pipe_file(path, data, mode="create"), (FileExistsError,))
        except FileExistsError:
            return False
        return True

    def move(self, source: str, target: str) -> None:
        self._reach(source, lambda path: self._fs.cp_file(path, self._path(target)), (FileNotFoundError,))
        self.remove(source)

    def remove(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._reach(name, lambda path: self._fs.rm_file(path), (FileNotFoundError,))

    def sizes(self, folder: str) -> dict[str, int]:
        try:
            found = self._reach(folder, lambda path: self._fs.find(path, detail=True), (FileNotFoundError,))
        except FileNotFoundError:
            return {}
        return {path.removeprefix(f"{self._root}/"): int(info["size"]) for path, info in found.items()}

    @contextlib.contextmanager
    def fetched(self, name: str) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(prefix="dvg-") as folder:
            path = Path(folder, Path(name).name)
            with told_when_full(path):
                self._reach(name, lambda there: self._fs.get_file(there, str(path)), (FileNotFoundError,))
            yield path

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _reach(self, name: str, do: Callable[[str], T], answers: tuple[type[OSError], ...] = ()) -> T:
        return reached(self.target(name), lambda: do(self._path(name)), answers)


def open_store(place: Destination) -> Store:
    """Raises ConfigError for a URL that cannot be used."""
    return FolderStore(Path(place)) if isinstance(place, Path) else UrlStore(place)


def parse_place(text: str) -> Destination:
    """``--out`` as a path or a URL. Raises ConfigError for a URL that holds a secret or asks for more than a place."""
    if "://" not in text and "::" not in text:
        return Path(text)
    scheme, _, rest = text.partition("://")
    parts = urlsplit(text)
    if scheme == "file":
        return Path(rest)
    if "@" in parts.netloc or parts.query or parts.fragment:
        told = f"{without_password(re.split('[?#]', text)[0])!r} must be a plain URL, without user, password, query or fragment"
        raise ConfigError([f"output {told}; credentials come from the environment"])
    if not re.fullmatch(r"[a-z][a-z0-9+.-]*", scheme) or not rest.strip("/"):
        raise ConfigError([f"output {text!r} is neither a path nor a URL like s3://bucket/folder"])
    return text.rstrip("/")


@contextlib.contextmanager
def staged(target: Destination) -> Iterator[Path]:
    """A path on this machine to write the file ``target`` to. A URL's is uploaded when the context ends without an error.

    Raises RunError where this machine, and not the file's maker, is at fault: DiskFull, a folder that is not shared with
    this node, a store that cannot be reached.
    """
    if isinstance(target, Path):
        if not target.parent.is_dir():
            told = f"folder {str(target.parent)!r} of the run is not on {platform.node()}"
            raise RunError(f"{told}: give an --out on a file system that every node shares, or a URL such as s3://bucket/folder")
        with told_when_full(target):
            yield target
        return
    with tempfile.TemporaryDirectory(prefix="dvg-") as folder:
        path = Path(folder, target.rpartition("/")[2])
        with told_when_full(path):
            yield path
        fs, there = _connect(target)
        reached(target, lambda: fs.put_file(str(path), there))


@contextlib.contextmanager
def fetched(target: Destination) -> Iterator[Path]:
    """The file of a target on this machine. Raises FileNotFoundError, and RunError for a store that cannot be reached."""
    if isinstance(target, Path):
        place, name = target.parent, target.name
        with FolderStore(place).fetched(name) as path:
            yield path
        return
    url, _, name = target.rpartition("/")
    with UrlStore(url).fetched(name) as path:
        yield path


def reached(url: str, do: Callable[[], T], answers: tuple[type[OSError], ...] = (), pauses_s: tuple[float, ...] = PAUSES_S) -> T:
    """``do()``, again after each pause while it fails. Raises RunError in the end, and ``answers`` at once."""
    try:
        return do()
    except answers:
        raise
    except Exception as error:
        if not pauses_s or _is_an_answer(error):
            told = without_password(" ".join(str(error).split()))[:300] or type(error).__name__
            raise RunError(f"{url!r} cannot be reached from {platform.node()}: {told}") from error
    time.sleep(pauses_s[0])
    return reached(url, do, answers, pauses_s[1:])


def _is_an_answer(error: Exception) -> bool:
    """Asking again gives no other."""
    return isinstance(error, PermissionError | FileNotFoundError) or type(error).__name__ in NO_CREDENTIALS


def _connect(url: str) -> tuple[Any, str]:
    """The file system of a URL and the path on it. Listings are not kept: others write there too."""
    import fsspec

    scheme = url.partition("://")[0]
    try:
        fs, path = fsspec.core.url_to_fs(url, use_listings_cache=False)
    except ImportError as error:
        extra = EXTRAS.get(scheme)
        how = f"pip install 'dvg-orchestrator[{extra}]'" if extra else str(error)
        raise ConfigError([f"output {url!r} needs a package that is not installed: {how}"]) from error
    except ValueError as error:
        raise ConfigError([f"output {url!r} cannot be used: {error}"]) from error
    return fs, str(path).rstrip("/")
