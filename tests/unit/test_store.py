"""A folder and a URL keep files alike: whole or not at all, and never with a secret in the name."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from orchestrator import store as stores
from orchestrator.mistakes import ConfigError, DiskFull, RunError
from orchestrator.store import FolderStore, Store, UrlStore, fetched, open_store, parse_place, reached, staged


@pytest.fixture(params=["folder", "url"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    fsspec.filesystem("memory").store.clear()
    yield open_store(tmp_path / "run" if request.param == "folder" else "memory://bucket/run")
    fsspec.filesystem("memory").store.clear()


def test_what_is_put_is_read_and_listed_until_it_is_removed(store: Store) -> None:
    assert store.read("a/b.json") is None
    assert store.sizes("a") == {}
    store.put("a/b.json", b"one")
    store.put("a/b.json", b"other")
    store.put("a/c/d.json", b"x")
    assert store.read("a/b.json") == b"other"
    assert store.sizes("a") == {"a/b.json": 5, "a/c/d.json": 1}
    assert store.sizes("") == store.sizes("a")
    store.remove("a/b.json")
    store.remove("a/b.json")
    assert store.sizes("a") == {"a/c/d.json": 1}


def test_only_the_first_creates_a_file(store: Store) -> None:
    assert store.create("a/owner", b"first")
    assert not store.create("a/owner", b"second")
    assert store.read("a/owner") == b"first"


def test_a_move_leaves_nothing_behind_and_replaces_what_was_there(store: Store) -> None:
    store.put("v/.1.2.mp4", b"new")
    store.put("v/1.mp4", b"old")
    store.move("v/.1.2.mp4", "v/1.mp4")
    assert store.sizes("v") == {"v/1.mp4": 3}
    with pytest.raises(FileNotFoundError):
        store.move("v/.1.2.mp4", "v/1.mp4")


def test_a_staged_file_appears_when_it_is_whole_and_can_be_fetched(store: Store) -> None:
    place = store.target("videos/.1.1.mp4")
    with staged(place) as path:
        assert path.is_absolute()
        path.write_bytes(b"frames")
    assert store.sizes("videos") == {"videos/.1.1.mp4": 6}
    with store.fetched("videos/.1.1.mp4") as here, fetched(place) as too:
        assert (here.read_bytes(), too.read_bytes()) == (b"frames", b"frames")
    with pytest.raises(FileNotFoundError), store.fetched("videos/2.mp4"):
        pass


def test_nothing_is_uploaded_of_a_file_whose_maker_failed() -> None:
    url = UrlStore("memory://bucket/failed")
    folders: list[Path] = []

    def fail(path: Path) -> None:
        path.write_bytes(b"half")
        folders.append(path.parent)
        raise ArithmeticError

    with pytest.raises(ArithmeticError), staged(url.target("v.mp4")) as path:
        fail(path)
    assert url.sizes("") == {}
    assert not folders[0].exists(), "the temporary folder is gone"


def test_a_run_folder_that_is_not_on_a_node_is_told_and_not_made_there(tmp_path: Path) -> None:
    told = r"'.*/elsewhere' of the run is not on \S+: give an --out on a file system"
    with pytest.raises(RunError, match=told), staged(tmp_path / "elsewhere" / "v.mp4"):
        pass
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("runs/a", Path("runs/a")),
        ("/data/run:1", Path("/data/run:1")),
        ("file:///data/run", Path("/data/run")),
        ("s3://bucket/a/b/", "s3://bucket/a/b"),
        ("gs://bucket", "gs://bucket"),
    ],
)
def test_a_place_is_a_path_or_a_url(text: str, place: Path | str) -> None:
    assert parse_place(text) == place


@pytest.mark.parametrize(
    "text",
    ["s3://key:hush@bucket/run", "s3://hush@bucket/run", "https://host/run?token=hush", "s3://bucket/run#hush"],
)
def test_a_url_with_a_secret_is_refused_without_repeating_it(text: str) -> None:
    with pytest.raises(ConfigError, match="credentials come from the environment") as told:
        parse_place(text)
    assert "hush" not in str(told.value)


@pytest.mark.parametrize("text", ["s3://", "S3://bucket/x", "simplecache::s3://bucket/run", "://x"])
def test_what_is_neither_a_path_nor_a_url_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="neither a path nor a URL"):
        parse_place(text)


def test_an_unknown_scheme_is_refused_with_what_there_is() -> None:
    with pytest.raises(ConfigError, match=r"output 'nonsense://a/b' cannot be used: .*nonsense"):
        open_store("nonsense://a/b")


def test_a_store_is_asked_again_a_few_times_and_then_named_without_its_password() -> None:
    asked: list[int] = []

    def fails_twice() -> str:
        asked.append(1)
        if len(asked) < 3:
            raise ConnectionError("reset by http://me:hush@proxy")
        return "there"

    assert reached("s3://b/x", fails_twice, pauses_s=(0, 0)) == "there"
    asked.clear()
    with pytest.raises(RunError, match=r"'s3://b/x' cannot be reached from \S+: reset by http://\*\*\*@proxy"):
        reached("s3://b/x", fails_twice, pauses_s=(0,))


def test_a_denied_access_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores.time, "sleep", lambda s: pytest.fail("asked again"))

    def denied() -> None:
        raise PermissionError("Access Denied")

    with pytest.raises(RunError, match="Access Denied"):
        reached("s3://b/x", denied)


@pytest.mark.parametrize("name", ["NoCredentialsError", "PartialCredentialsError"])
def test_missing_credentials_are_told_at_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores.time, "sleep", lambda s: pytest.fail("asked again"))
    kind = getattr(pytest.importorskip("botocore.exceptions"), name)

    def nobody() -> None:
        raise kind(provider="env", cred_var="AWS_SECRET_ACCESS_KEY")

    with pytest.raises(RunError, match=r"(?i)credentials"):
        reached("s3://b/x", nobody)


def test_a_created_file_is_never_there_in_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def look(draft: Path, path: Path) -> None:
        assert draft.read_bytes() == b"who"
        assert not path.exists()
        link(draft, path)
        linked.append(path)

    link, linked = os.link, list[Path]()
    monkeypatch.setattr(stores.os, "link", look)
    assert FolderStore(tmp_path).create("owner", b"who")
    assert linked == [tmp_path / "owner"]
    monkeypatch.undo()
    assert not FolderStore(tmp_path).create("owner", b"other")
    assert FolderStore(tmp_path).sizes("") == {"owner": 3}, "no draft is left"


def test_only_the_first_creates_a_file_where_there_are_no_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(draft: Path, path: Path) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(stores.os, "link", refuse)
    assert FolderStore(tmp_path).create("owner", b"first")
    assert not FolderStore(tmp_path).create("owner", b"second")
    assert FolderStore(tmp_path).sizes("") == {"owner": 5}
    assert FolderStore(tmp_path).read("owner") == b"first"


def test_a_folder_without_room_is_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DiskFull, match=re.escape(f"no room for '{tmp_path}/v.mp4'")), staged(tmp_path / "v.mp4"):
        raise OSError(28, "No space left on device")


def test_a_folder_store_never_leaves_its_folder_for_names_of_the_run(tmp_path: Path) -> None:
    assert FolderStore(tmp_path).target("videos/a/b/1.mp4").is_relative_to(tmp_path)
