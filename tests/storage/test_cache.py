"""The cache gives the content that is asked for, whatever lies there, and lets nobody else write in it."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import pytest

import rhofast.storage.cache
from rhofast.errors import ConfigError
from rhofast.storage.cache import Cache, own_folder
from rhofast.storage.cache_note import note_of
from rhofast.storage.cache_space import CacheSpace

CONTENT = bytes(range(256)) * 16
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Source:
    """Writes CONTENT, and counts how often."""

    def __init__(self) -> None:
        self.writes = 0

    def write(self, file: BinaryIO) -> None:
        self.writes += 1
        file.write(CONTENT)

    def get(self, cache: Cache) -> bytes:
        return cache.get("key", "name.tar", len(CONTENT), SHA256, self.write).read_bytes()


def opened(folder: Path) -> Cache:
    return Cache(folder / "cache", max_bytes=1 << 20)


def flip(path: Path) -> None:
    path.write_bytes(CONTENT[:-1] + b"x")


def cut(path: Path) -> None:
    os.truncate(path, len(CONTENT) - 1)


def point_elsewhere(path: Path) -> None:
    other = path.with_name("other")
    flip(other)
    path.unlink()
    path.symlink_to(other)


def replace(path: Path) -> None:
    other = path.with_name("other")
    flip(other)
    before = path.stat()
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.replace(path)


@pytest.mark.parametrize("change", [flip, cut, point_elsewhere, replace, os.unlink])
@pytest.mark.parametrize("reopen", [True, False])
def test_whatever_lies_there_the_content_is_the_one_with_the_digest(
    tmp_path: Path, change: Callable[[Path], None], reopen: bool
) -> None:
    cache, source = opened(tmp_path), Source()
    assert source.get(cache) == CONTENT
    change(tmp_path / "cache" / "key" / "name.tar")
    assert source.get(opened(tmp_path) if reopen else cache) == CONTENT
    assert source.writes == 2


@pytest.mark.parametrize("note", [b"", b"nonsense", b"\0" * 300, SHA256.encode(), None])
def test_a_file_without_a_right_note_is_read_once_and_kept(
    tmp_path: Path, note: bytes | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, source, read = opened(tmp_path), Source(), []
    path = cache.get("key", "name.tar", len(CONTENT), SHA256, source.write)
    if note is None:
        note_of(path).unlink()
    else:
        note_of(path).write_bytes(note)

    def digest_of(path: Path) -> str:
        read.append(path)
        return hashlib.sha256(path.read_bytes()).hexdigest()

    monkeypatch.setattr(rhofast.storage.cache, "digest_of", digest_of)
    for _ in range(2):
        again = opened(tmp_path)
        assert source.get(again) == source.get(again) == CONTENT
    assert source.writes == 1 and read == [path]


def test_a_damaged_file_is_deleted_once_and_a_sound_one_is_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, source = opened(tmp_path), Source()
    path = cache.get("key", "name.tar", len(CONTENT), SHA256, source.write)
    before = path.stat()
    flip(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert cache.recheck("key", "name.tar", SHA256) and not path.exists()
    assert not cache.recheck("key", "name.tar", SHA256)
    assert source.get(cache) == CONTENT
    assert not cache.recheck("key", "name.tar", SHA256)
    monkeypatch.setattr(rhofast.storage.cache, "digest_of", lambda _: pytest.fail("read again"))
    assert not cache.recheck("key", "name.tar", SHA256)


def test_notes_go_with_their_files(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", max_bytes=2 * len(CONTENT))
    for number in range(5):
        cache.get("key", f"{number}.tar", len(CONTENT), SHA256, Source().write)
    names = sorted(path.name for path in (tmp_path / "cache" / "key").iterdir())
    assert names == [".3.tar.note", ".4.tar.note", "3.tar", "4.tar"]
    assert cache.num_bytes() == 2 * len(CONTENT)
    cache.drop("key", "4.tar")
    assert len(list((tmp_path / "cache" / "key").iterdir())) == 2


def test_space_is_counted_anew_only_when_it_seems_used_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts, files = [], CacheSpace.files
    monkeypatch.setattr(CacheSpace, "files", lambda space: counts.append(1) or files(space))
    first, second = (Cache(tmp_path / "cache", max_bytes=8 * len(CONTENT)) for _ in range(2))
    for number in range(8):
        (first, second)[number % 2].get("key", f"{number}.tar", len(CONTENT), SHA256, Source().write)
    assert len(counts) == 2  # once per process, which may have come after a crash
    first.drop("key", "3.tar")
    second.get("key", "8.tar", len(CONTENT), SHA256, Source().write)
    names = {path.name for path in (tmp_path / "cache" / "key").glob("*.tar")}
    assert len(counts) == 3 and names == {f"{number}.tar" for number in (0, 1, 2, 4, 5, 6, 7, 8)}


@pytest.mark.parametrize("noted", [b"", b"0", b"nonsense" * 3, b"0" * 21])
def test_the_bound_holds_whatever_the_lock_says(tmp_path: Path, noted: bytes) -> None:
    cache = Cache(tmp_path / "cache", max_bytes=3 * len(CONTENT))
    for number in range(6):
        cache.get("key", f"{number}.tar", len(CONTENT), SHA256, Source().write)
        (tmp_path / "cache" / ".lock").write_bytes(noted)
        assert cache.num_bytes() <= 3 * len(CONTENT)


def test_files_of_another_user_are_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache, source = opened(tmp_path), Source()
    source.get(cache)
    me = os.getuid()
    monkeypatch.setattr("os.getuid", lambda: me + 1)
    source.get(cache)
    assert source.writes == 2
    with pytest.raises(ConfigError, match="belongs to another user"):
        opened(tmp_path)


def test_a_folder_in_which_others_can_write_is_refused(tmp_path: Path) -> None:
    opened(tmp_path)
    (tmp_path / "cache").chmod(0o770)
    with pytest.raises(ConfigError, match="other users can write in it") as caught:
        opened(tmp_path)
    assert "chmod 700" in str(caught.value)


def test_a_folder_that_others_can_replace_is_refused(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    with pytest.raises(ConfigError, match="every user can rename") as caught:
        Cache(own_folder(shared), max_bytes=1)
    assert f"chmod +t {shared}" in str(caught.value)
    shared.chmod(0o1777)
    cache = Cache(own_folder(shared), max_bytes=1)
    assert cache.folder == shared / f"rhofast-cache-{os.getuid()}"
    assert cache.folder.stat().st_mode & 0o777 == 0o700


def test_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "cache").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="or is a link"):
        opened(tmp_path)
