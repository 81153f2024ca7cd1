"""A head that can no longer be reached."""

from __future__ import annotations

import errno
import socket
import time
from collections.abc import Callable

import pytest

from orchestrator import outside
from orchestrator.outside import Head, HeadLost


def wait_until(condition: Callable[[], bool]) -> None:
    while not condition():
        time.sleep(0.01)


def test_a_head_that_is_stopped_for_a_while_is_waited_for_however_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outside, "KNOCK_S", 0.01)
    monkeypatch.setattr(outside, "HEAD_LOST_S", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as never_accepts, Head(f"127.0.0.1:{never_accepts.getsockname()[1]}") as head:
        for _ in range(20):
            time.sleep(0.01)
            assert head.is_there
            head.refuse_to_wait()


def test_a_machine_without_sockets_left_has_not_lost_its_head(monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(*arguments: object, **options: object) -> None:
        raise OSError(errno.EMFILE, "too many open files")

    monkeypatch.setattr(outside, "KNOCK_S", 0.01)
    monkeypatch.setattr(outside, "HEAD_LOST_S", 0.0)
    monkeypatch.setattr(socket, "create_connection", none_left)
    with Head("127.0.0.1:1") as head:
        time.sleep(0.1)
        assert head.is_there
        head.refuse_to_wait()


def test_a_head_that_is_refused_for_long_is_lost_and_one_that_comes_back_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outside, "KNOCK_S", 0.02)
    server = socket.create_server(("127.0.0.1", 0))
    port = server.getsockname()[1]
    with Head(f"127.0.0.1:{port}") as head:
        time.sleep(0.1)
        assert head.is_there
        server.close()
        wait_until(lambda: not head.is_there)
        head.refuse_to_wait()
        with socket.create_server(("127.0.0.1", port)):
            wait_until(lambda: head.is_there)
        wait_until(lambda: not head.is_there)
        monkeypatch.setattr(outside, "HEAD_LOST_S", 0.0)
        with pytest.raises(HeadLost, match=rf":{port} has not answered .* the same command goes on in another cluster"):
            head.refuse_to_wait()


def test_a_driver_that_waits_for_a_lost_head_is_ended_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ended: list[int] = []
    monkeypatch.setattr(outside, "KNOCK_S", 0.02)
    monkeypatch.setattr(outside, "HEAD_LOST_S", 0.0)
    monkeypatch.setattr(outside, "STUCK_S", 0.05)
    monkeypatch.setattr("os._exit", ended.append)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with Head(f"127.0.0.1:{port}"):
        wait_until(lambda: bool(ended))
    assert ended[0] == 1
    assert "error: the head of the Ray cluster at" in capsys.readouterr().err
