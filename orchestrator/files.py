"""Files written whole or not at all, and what is said when there is no room for them."""

from __future__ import annotations

import contextlib
import errno
import os
import platform
import shutil
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from orchestrator.mistakes import DiskFull

FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""A full disk, a quota, a limit on the size of files."""

BLOCK_BYTES = 1 << 16
"""How much of the end of a file of lines is read at a time."""


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write, sync, rename: a reader sees the old file or the whole new one. Raises DiskFull, with the old one in its place."""
    data = content.encode() if isinstance(content, str) else content
    draft = path.with_name(f".{path.name}.part")  # one name: a run has one writer, and what a crash left is overwritten
    with told_when_full(path, len(data)):
        handle = _created(draft)
        try:
            try:
                _write(handle, data, sync=True)
            finally:
                os.close(handle)
        except OSError:
            draft.unlink(missing_ok=True)
            raise
    move(draft, path)


def _created(path: Path) -> int:
    """A handle to an empty file, in a folder that is made if it is not there."""
    how = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
    try:
        return os.open(path, how, 0o666)
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(path, how, 0o666)


def _write(handle: int, data: bytes, sync: bool) -> None:
    """All of ``data``, or the file is as long as it was. A disk that fills up takes the first part without an error."""
    written = 0
    try:
        while written < len(data):
            written += os.write(handle, data[written:] if written else data)
        if sync:
            os.fsync(handle)
    except BaseException:
        os.ftruncate(handle, os.fstat(handle).st_size - written)
        raise


def move(source: Path, target: Path) -> None:
    """Rename and make the rename itself durable."""
    os.replace(source, target)
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def append_whole(path: Path, line: bytes, sync: bool) -> None:
    """Add ``line`` or nothing; a file has one writer. ``sync``: it is on disk when this returns. Raises DiskFull."""
    Lines(path).append(line, sync)


class Lines:
    """A file that lines are added to by one writer: open as long as this lives, which saves half the time of a line."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with told_when_full(path):
            self._handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
        weakref.finalize(self, os.close, self._handle).atexit = False

    def append(self, line: bytes, sync: bool = False) -> None:
        """The whole line or nothing. ``sync``: it is on disk when this returns. Raises DiskFull."""
        with told_when_full(self.path, len(line)):
            _write(self._handle, line, sync)


@contextlib.contextmanager
def told_when_full(path: Path, num_bytes: int | None = None) -> Iterator[None]:
    """A lack of room for ``path`` becomes a DiskFull that says how much was needed, if known, how much there is, and where."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise DiskFull(_full(path, num_bytes, error)) from error


def _full(path: Path, num_bytes: int | None, error: OSError) -> str:
    needed = "" if num_bytes is None else f"it needs {size(num_bytes)}; "
    return (
        f"no room for {str(path)!r} on {platform.node()} ({os.strerror(error.errno or 0)}): {needed}{_room(path)}; "
        "what is finished is kept, and the same command goes on once there is room"
    )


def _room(path: Path) -> str:
    try:
        usage = shutil.disk_usage(next(folder for folder in path.parents if folder.is_dir()))
    except OSError:
        return "its disk cannot be asked"
    return f"its disk has {size(usage.free)} of {size(usage.total)} free"


def size(num_bytes: float) -> str:
    """For people: ``12.3 MB``."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if abs(num_bytes) < 1000:
            return f"{num_bytes:.3g} {unit}" if unit != "bytes" else f"{num_bytes:.0f} bytes"
        num_bytes /= 1000
    return f"{num_bytes:.3g} TB"


def cut_torn_tail(path: Path) -> None:
    """Cut what follows the last line end, which a crash left; a file that is not there is made."""
    if not path.exists():
        path.touch()
        return
    with path.open("r+b") as file:
        num_bytes = file.seek(0, os.SEEK_END)
        keep = _line_begin(file, num_bytes)
        if keep < num_bytes:
            file.truncate(keep)
            os.fsync(file.fileno())


def last_line(path: Path) -> bytes:
    """The last whole line, without its end; empty when there is none. Reads no more than the end of the file."""
    with path.open("rb") as file:
        stop = _line_begin(file, file.seek(0, os.SEEK_END)) - 1
        begin = _line_begin(file, stop)
        file.seek(begin)
        return file.read(max(0, stop - begin))


def _line_begin(file: BinaryIO, stop: int) -> int:
    """Offset of what follows the last line end before ``stop``."""
    while stop > 0:
        begin = max(0, stop - BLOCK_BYTES)
        file.seek(begin)
        found = file.read(stop - begin).rfind(b"\n")
        if found >= 0:
            return begin + found + 1
        stop = begin
    return 0
