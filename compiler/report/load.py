"""Reading report.json back, held against its schema."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema

from ccnn.compiler.failure import ExitCode, Failure
from ccnn.compiler.files import read_bytes
from ccnn.compiler.report.fields import SCHEMA_VERSION


def report_schema() -> dict[str, Any]:
    """The JSON Schema of report.json."""
    return json.loads(files("ccnn.compiler.report").joinpath("report.schema.json").read_text())


def load_report(folder: Path) -> dict[str, Any]:
    """The report in a folder that `ccnn compile` wrote. Raises Failure when there is none."""
    path = folder / "report.json"
    if folder.is_file():
        raise Failure(
            ExitCode.FILES, f"{folder} is a file; give the folder that `ccnn compile -o` wrote"
        )
    if folder.is_dir() and not path.exists():
        raise Failure(
            ExitCode.FILES,
            f"{folder} holds no report.json; make one with `ccnn compile -o {folder}`",
        )
    try:
        report = json.loads(read_bytes(path))
    except (ValueError, RecursionError) as error:
        raise _refuse(path, f"is not JSON ({error})") from error
    found = report.get("schema_version") if isinstance(report, dict) else None
    if found != SCHEMA_VERSION:
        raise _refuse(path, f"has schema version {found!r}, this ccnn reads {SCHEMA_VERSION}")
    problem = next(jsonschema.Draft202012Validator(report_schema()).iter_errors(report), None)
    if problem is not None:
        place = "/".join(map(str, problem.absolute_path)) or "the top"
        raise _refuse(path, f"does not follow its schema at {place}: {problem.message[:200]}")
    return report


def _refuse(path: Path, what: str) -> Failure:
    return Failure(ExitCode.INPUT, f"{path} {what}; compile the model again")
