"""The compiler as a library: `from ccnn.compiler import compile_model, CompileOptions`.

The names are looked up when they are first used, so that importing this package (or asking the
command for its help) loads neither onnx nor ortools.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ccnn.compiler.check import check_model
    from ccnn.compiler.driver import Compilation, CompileOptions, compile_model
    from ccnn.compiler.execution import run_steps, verify_values
    from ccnn.compiler.reader import read_model
    from ccnn.compiler.report import build_report

_HOME = {
    "Compilation": "driver",
    "CompileOptions": "driver",
    "build_report": "report",
    "check_model": "check",
    "compile_model": "driver",
    "read_model": "reader",
    "run_steps": "execution",
    "verify_values": "execution",
}

__all__ = [
    "Compilation",
    "CompileOptions",
    "build_report",
    "check_model",
    "compile_model",
    "read_model",
    "run_steps",
    "verify_values",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'ccnn.compiler' has no attribute '{name}'")
    return getattr(import_module(f"ccnn.compiler.{_HOME[name]}"), name)
