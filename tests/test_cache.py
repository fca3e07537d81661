"""The cache on disk: what is found again, and what is not."""

from __future__ import annotations

import os

import pytest

from ccnn.compiler import cache


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    """Each test has a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def entries():
    return sorted(cache.folder().glob("*.entry"))


def test_found_by_kind_and_key():
    cache.put("map", b"key", "größer\n")
    assert cache.get("map", b"key") == "größer\n"
    assert cache.get("map", b"other") is None
    assert cache.get("compile", b"key") is None
    cache.put("map", b"key", "new")
    assert cache.get("map", b"key") == "new"
    assert [p.name for p in cache.folder().iterdir()] == [p.name for p in entries()]


def test_another_source_finds_nothing(monkeypatch):
    cache.put("map", b"key", "text")
    monkeypatch.setattr(cache, "code_hash", lambda: b"of another version")
    assert cache.get("map", b"key") is None


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:-1],
        lambda content: content[:-1] + bytes([content[-1] ^ 1]),
        lambda content: b"ccnn-cache-0 " + content.partition(b" ")[2],
        lambda content: b"\x80\x04N.",
    ],
)
def test_damaged_entries_are_absent_and_replaced(damage):
    cache.put("map", b"key", "text")
    (path,) = entries()
    path.write_bytes(damage(path.read_bytes()))
    assert cache.get("map", b"key") is None
    cache.put("map", b"key", "text")
    assert cache.get("map", b"key") == "text"


def test_a_folder_in_the_place_of_an_entry_is_no_error():
    cache.put("map", b"key", "text")
    (path,) = entries()
    path.unlink()
    path.mkdir()
    assert cache.get("map", b"key") is None
    cache.put("map", b"key", "text")
    assert entries() == [path]


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path, monkeypatch):
    file = tmp_path / "file"
    file.write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(file))
    cache.put("map", b"key", "text")
    assert cache.get("map", b"key") is None


def test_relative_places_are_ignored(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "here")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache.folder() == tmp_path / ".cache" / "ccnn"


def test_the_longest_unused_go_first(monkeypatch):
    for k in range(3):
        cache.put("map", bytes([k]), f"text {k}")
        for path in entries():
            os.utime(path, ns=(os.stat(path).st_atime_ns, os.stat(path).st_mtime_ns - 10**12))
    assert cache.get("map", b"\x00") == "text 0"
    size = max(path.stat().st_size for path in entries())
    monkeypatch.setattr(cache, "MOST_BYTES", 2 * size + size // 2)
    cache.put("map", b"\x03", "text 3")
    assert [cache.get("map", bytes([k])) for k in range(4)] == ["text 0", None, None, "text 3"]
