"""Results kept on disk between runs, found by the content they were made from.

An entry's name is a hash of everything it depends on: its kind, the caller's key, ccnn's own
source and the versions of the packages that results depend on.  So an entry is right or absent,
never stale, and nothing has to be told when a file changes.

An entry is one file: a line with format and SHA-256 of the rest, then the text, compressed.  It is
written whole or not at all; one that is damaged, of another format or of another user counts as
absent.  A cache that cannot be read or written is no error: the work is done anew.
"""

from __future__ import annotations

import hashlib
import os
import platform
import tempfile
import zlib
from contextlib import suppress
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path

MOST_BYTES = 256 * 2**20
"""What all entries may take together; the longest unused go first."""

_FORMAT = b"ccnn-cache-1 "
_SUFFIX = ".entry"
_PACKAGES = ("ccnn", "jinja2", "ml-dtypes", "networkx", "numpy", "onnx", "ortools")
_SOURCE = (".py", ".yaml", ".json", ".j2")


def get(kind: str, key: bytes) -> str | None:
    """The text that was put under this key, or None."""
    path = _path(kind, key)
    try:
        with path.open("rb") as stream:
            if hasattr(os, "getuid") and os.fstat(stream.fileno()).st_uid != os.getuid():
                return None
            head, _, packed = stream.read().partition(b"\n")
        if head != _head(packed):
            return None
        text = zlib.decompress(packed).decode()
    except (OSError, ValueError, zlib.error):
        return None
    with suppress(OSError):
        os.utime(path)  # used just now: the last to go
    return text


def put(kind: str, key: bytes, text: str) -> None:
    """Keep a text under this key; does nothing where it cannot be written."""
    path = _path(kind, key)
    packed = zlib.compress(text.encode(), 1)
    scratch = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle, scratch = tempfile.mkstemp(prefix=".partial-", dir=path.parent)
        with os.fdopen(handle, "wb") as stream:
            stream.write(_head(packed) + b"\n" + packed)
        os.replace(scratch, path)
        scratch = None
        _shrink(path.parent)
    except OSError:
        return
    finally:
        if scratch is not None:
            with suppress(OSError):
                os.unlink(scratch)


def folder() -> Path:
    """Where entries lie: `ccnn` in $XDG_CACHE_HOME, by default ~/.cache."""
    home = os.environ.get("XDG_CACHE_HOME", "")
    # The specification says that a relative path is to be ignored.
    base = Path(home) if os.path.isabs(home) else Path(os.path.expanduser("~")) / ".cache"
    return base / "ccnn"


def _head(packed: bytes) -> bytes:
    return _FORMAT + hashlib.sha256(packed).hexdigest().encode()


def _path(kind: str, key: bytes) -> Path:
    whole = hashlib.sha256()
    for part in (kind.encode(), code_hash(), key):
        whole.update(len(part).to_bytes(8, "big") + part)
    return folder() / (whole.hexdigest() + _SUFFIX)


@lru_cache(maxsize=1)
def code_hash() -> bytes:
    """A hash of ccnn's source files and of the versions of Python and of the packages below it."""
    found = hashlib.sha256(platform.python_version().encode())
    for package in _PACKAGES:
        found.update(f"\n{package} {version(package)}".encode())
    root = Path(__file__).parent.parent
    for room in ("compiler", "passes", "targets"):
        for path in sorted((root / room).rglob("*")):
            if path.suffix in _SOURCE:
                content = path.read_bytes()
                found.update(f"\n{path.relative_to(root).as_posix()} {len(content)}\n".encode())
                found.update(content)
    return found.digest()


def _shrink(place: Path) -> None:
    """Remove the entries longest unused until the rest is within the bound."""
    entries = []
    for path in place.glob(f"*{_SUFFIX}"):
        with suppress(OSError):  # another process may have removed it
            status = path.stat()
            entries.append((status.st_mtime_ns, path.name, status.st_size))
    total = sum(size for _, _, size in entries)
    for _, name, size in sorted(entries):
        if total <= MOST_BYTES:
            return
        with suppress(OSError):
            (place / name).unlink()
        total -= size
