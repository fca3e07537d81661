"""How the command ends: exit codes, and which error leads to which.

An error message of ccnn has three parts: what is wrong and where, its neighbourhood, what to do.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from enum import IntEnum


class ExitCode(IntEnum):
    """What the command's exit status means."""

    OK = 0
    FAILED = 1
    USAGE = 2
    INPUT = 3
    MACHINE = 4
    FILES = 5
    INTERNAL = 6
    INTERRUPTED = 130
    PIPE = 141


MEANING = {
    ExitCode.OK: "all is well",
    ExitCode.FAILED: "check, verify, simulate or diff looked and found something wrong",
    ExitCode.USAGE: "the command line makes no sense",
    ExitCode.INPUT: "a model, program or data file is not accepted",
    ExitCode.MACHINE: "a machine description is not accepted",
    ExitCode.FILES: "a file cannot be read or written, or memory is exhausted",
    ExitCode.INTERNAL: "a bug in ccnn: please report it",
    ExitCode.INTERRUPTED: "stopped with Ctrl-C",
    ExitCode.PIPE: "nobody reads the output any more",
}


@dataclass
class Failure(Exception):
    """The end of a command with a message for the person who gave it."""

    code: ExitCode
    message: str

    def __str__(self) -> str:
        return self.message


# Errors by home and name, so that printing a message needs no import of the module it came from.
_CODES = {
    "ReadError": ExitCode.INPUT,
    "ProgramError": ExitCode.INPUT,
    "MachineError": ExitCode.MACHINE,
    "CodegenError": ExitCode.INPUT,
    "MappingError": ExitCode.INPUT,
    "ExportError": ExitCode.INPUT,
    "PluginError": ExitCode.INPUT,
    "GraphError": ExitCode.INTERNAL,
    "SimulationError": ExitCode.INTERNAL,
    "VectorError": ExitCode.INTERNAL,
}


def explain(error: Exception) -> Failure:
    """The failure an error amounts to; whatever ccnn does not know is a bug in ccnn."""
    if isinstance(error, Failure):
        return error
    if isinstance(error, OSError):
        return cannot("use", error.filename, error)
    if isinstance(error, MemoryError):
        return Failure(ExitCode.FILES, "out of memory; try a smaller --batch, or a shorter --dtype")
    code = next((_CODES[c.__name__] for c in type(error).__mro__ if _is_ours(c)), None)
    if code is None:
        return Failure(ExitCode.INTERNAL, _bug(f"{type(error).__name__}: {error}"))
    if code is ExitCode.INTERNAL:
        return Failure(code, _bug(str(error)))
    return Failure(code, str(error))


def _is_ours(kind: type) -> bool:
    return kind.__module__.startswith("ccnn.") and kind.__name__ in _CODES


HOW_TO_REPORT = (
    "Please report it: `ccnn bugreport MODEL` with the same options packs what is needed into one "
    "file, without names and weights."
)


def _bug(message: str) -> str:
    return (
        f"internal error: {message}\n"
        f"This is a bug in ccnn, not in your input. {HOW_TO_REPORT} -v adds the traceback."
    )


def cannot(verb: str, path: object, error: OSError) -> Failure:
    """The failure of a file operation, with what to do about it."""
    advice = {
        errno.ENOSPC: "free some space, or choose another place",
        errno.EDQUOT: "free some of your quota, or choose another place",
        errno.EACCES: "change its permissions, or choose another place",
        errno.EPERM: "change its permissions, or choose another place",
        errno.EROFS: "choose a place that is not mounted read-only",
        errno.ENOENT: "check the name",
        errno.EISDIR: "give a file, not a folder",
        errno.ENOTDIR: "a part of the path is a file; choose another place",
        errno.EEXIST: "choose another place",
        errno.ENAMETOOLONG: "choose a shorter name",
    }.get(error.errno or 0, "choose another place, or try again")
    reason = error.strerror or str(error)
    where = f" {os.fspath(path)}" if isinstance(path, str | os.PathLike) else " a file"
    return Failure(ExitCode.FILES, f"cannot {verb}{where}: {reason}; {advice}")
