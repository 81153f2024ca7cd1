"""A hub on 127.0.0.1 with one repository, which answers as the real one does where its client asks."""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """``endpoint`` is what HF_ENDPOINT must say; ``asked`` the paths of the files that were downloaded."""

    def __init__(self, repository: str, folder: Path) -> None:
        self.repository, self.folder = repository, folder
        self.asked: list[str] = []
        self.tokens: set[str | None] = set()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    def files(self) -> dict[str, bytes]:
        return {p.relative_to(self.folder).as_posix(): p.read_bytes() for p in self.folder.rglob("*") if p.is_file()}

    def _handler(hub) -> type[BaseHTTPRequestHandler]:
        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self.do_GET()

            def do_GET(self) -> None:
                hub.tokens.add(self.headers.get("authorization"))
                path, api, resolve = (
                    self.path.split("?")[0],
                    f"/api/models/{hub.repository}",
                    f"/{hub.repository}/resolve/{COMMIT}/",
                )
                files = hub.files()
                if path.startswith(f"{api}/revision/"):
                    self._json({"id": hub.repository, "sha": COMMIT, "siblings": [{"rfilename": name} for name in files]})
                elif path.startswith(f"{api}/tree/"):
                    self._json([{"type": "file", "path": n, "size": len(b), "oid": _oid(b)} for n, b in files.items()])
                elif path.startswith(resolve) and (name := path.removeprefix(resolve)) in files:
                    self._file(name, files[name])
                else:
                    self._send(404, b"{}", {"X-Error-Code": "RepoNotFound", "Content-Type": "application/json"})

            def _json(self, value: object) -> None:
                self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

            def _file(self, name: str, body: bytes) -> None:
                if self.command == "GET":
                    hub.asked.append(name)
                self._send(200, body, {"ETag": f'"{_oid(body)}"', "X-Repo-Commit": COMMIT})

            def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
                self.send_response(status)
                for key, value in {**headers, "Content-Length": str(len(body))}.items():
                    self.send_header(key, value)
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body)

            def log_message(self, *arguments: object) -> None:
                pass

        return Handler


def _oid(body: bytes) -> str:
    return hashlib.sha1(body).hexdigest()


@contextlib.contextmanager
def serve(repository: str, folder: Path) -> Iterator[Hub]:
    """The hub, for as long as the block runs."""
    hub = Hub(repository, folder)
    thread = threading.Thread(target=hub.server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.server.shutdown()
        hub.server.server_close()
