"""Files written whole or not at all.

Everything is written under a temporary name in the folder where it will stay, flushed to the
disk, and renamed: a reader sees the old file or the new one, never half of it, whatever stops us.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from ccnn.compiler.failure import ExitCode, Failure, cannot


class OutputFolder:
    """A folder that receives files all at once; made by `output_folder`."""

    def __init__(self, path: Path, scratch: Path) -> None:
        self.path = path
        self._scratch = scratch

    def write(self, contents: Mapping[str, str | bytes]) -> list[Path]:
        """Put these files in place, by name; gives their paths. Raises Failure."""
        for name, content in contents.items():
            data = content.encode() if isinstance(content, str) else content
            try:
                with (self._scratch / name).open("wb") as stream:
                    _pour(stream, data)
            except OSError as error:
                raise cannot("write", self.path / name, error) from error
        placed = []
        for name in contents:
            try:
                os.replace(self._scratch / name, self.path / name)
            except OSError as error:
                raise cannot("write", self.path / name, error) from error
            placed.append(self.path / name)
        return placed


@contextmanager
def output_folder(path: Path) -> Iterator[OutputFolder]:
    """A folder to write to, made if need be; found unusable at once rather than after the work.

    Leaves nothing behind when the block is left without anything written.
    """
    made: list[Path] = []
    try:
        if path.exists() and not path.is_dir():
            raise Failure(
                ExitCode.FILES,
                f"cannot write to {path}: it exists and is not a folder; give another one with -o",
            )
        made = _missing_parents(path)
        path.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=".ccnn-partial-", dir=path))
    except OSError as error:
        _remove_empty(made)
        raise cannot("write to", path, error) from error
    try:
        yield OutputFolder(path, scratch)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        _remove_empty(made)


def write_file(path: Path, produce: Callable[[BinaryIO], object]) -> None:
    """Write one file through `produce(stream)`, in place only when complete. Raises Failure."""
    scratch = None
    try:
        # A device or a pipe cannot be renamed over, nor should it be.
        if path.exists() and not path.is_file() and not path.is_dir():
            with path.open("wb") as stream:
                produce(stream)
            return
        handle, name = tempfile.mkstemp(prefix=".ccnn-partial-", dir=path.parent)
        scratch = Path(name)
        with os.fdopen(handle, "wb") as stream:
            produce(stream)
            stream.flush()
            os.fsync(stream.fileno())
        _like_any_new_file(scratch)
        os.replace(scratch, path)
        scratch = None
    except OSError as error:
        raise cannot("write", path, error) from error
    finally:
        if scratch is not None:
            scratch.unlink(missing_ok=True)


def read_bytes(path: Path) -> bytes:
    """The content of a file. Raises Failure with what to do."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise cannot("read", path, error) from error


def _pour(stream: BinaryIO, data: bytes) -> None:
    stream.write(data)
    stream.flush()
    os.fsync(stream.fileno())


def _missing_parents(path: Path) -> list[Path]:
    """The folders that `mkdir` will have to make, innermost first."""
    missing = []
    for folder in (path, *path.parents):
        if folder.exists():
            break
        missing.append(folder)
    return missing


def _remove_empty(folders: list[Path]) -> None:
    for folder in folders:
        with suppress(OSError):  # not empty, or never made: both are fine
            folder.rmdir()


def _like_any_new_file(path: Path) -> None:
    """mkstemp makes files that only the owner can read; give this one the usual permissions."""
    mask = os.umask(0)
    os.umask(mask)
    path.chmod(0o666 & ~mask)


def writable(path: Path) -> None:
    """Say at once when a file cannot be written there, rather than after the work."""
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if not path.exists() or path.is_file():
            with tempfile.TemporaryFile(dir=path.parent):
                pass
    except OSError as error:
        raise cannot("write", path, error) from error


def need(path: Path) -> None:
    """Say at once when an input file cannot be read."""
    try:
        with path.open("rb"):
            pass
    except OSError as error:
        raise cannot("read", path, error) from error
