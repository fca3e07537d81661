"""`ccnn bugreport`: one file with all that is needed to see a problem, and nothing else.

The model goes in without weights and names (scramble.py).  It is then compiled as the original was,
and the bundle says whether that gave the same: the same totals, or the same error but for names.
"""

from __future__ import annotations

import io
import json
import platform
import re
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatchcase
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from traceback import extract_tb
from typing import Any

from google.protobuf.message import DecodeError, EncodeError
from onnx import ModelProto

from ccnn.compiler.actions import compile_and_cost, output_files
from ccnn.compiler.failure import ExitCode, Failure, explain
from ccnn.compiler.files import read_bytes, writable, write_file
from ccnn.compiler.options import Settings
from ccnn.compiler.progress import Progress, progress_on_stderr
from ccnn.compiler.reader import ReadError, ReadOptions, read_model
from ccnn.compiler.reader.problems import Refusal
from ccnn.compiler.reader.tensors import Folder
from ccnn.compiler.scramble import Names, scramble
from ccnn.targets.machine import MachineError, load_machine, machine_text

MODEL, MACHINE, FACTS, README = "model.onnx", "machine.yaml", "bugreport.json", "README.txt"
MAPPING = "mapping.txt"
_OF_A_SEARCH = ("objective", "budget")
_TOTALS = ("cycles", "macs", "dram_read_bytes", "dram_write_bytes", "gbuf_bytes", "energy_pj")
_NOTHING = "no-such-parameter"
_PACKAGE = Path(__file__).parent.parent
_TEXT = """A bug report of ccnn {version}, made by `ccnn bugreport`.

  {model:14}  the model: names are numbered, weights are made up, other texts are removed.
                  Operators, attributes, shapes, integers and single numbers are the model's own,
                  as is the name of the program that exported it.
  {machine:14}  the machine, whole
  {facts:14}  command, options, versions of ccnn and what it needs, and what came of it

Nothing else of the machine that made it is in here. To see the problem:

  {command}

There: {there}.
The model in this file: {here}.
"""


@dataclass(frozen=True)
class Outcome:
    """How a compilation ended: its totals, or its error."""

    exit_code: int
    totals: dict[str, float] | None = None
    error: str = ""
    message: str = ""
    traceback: tuple[str, ...] = ()

    @property
    def words(self) -> str:
        """What happened, in one line."""
        if self.totals is not None:
            return f"compiled, {self.totals['cycles']:,} cycles"
        start = " ".join(line.strip() for line in self.message.splitlines()[:2])
        return f"exit code {self.exit_code}, {self.error}: {start}"


def write_bundle(model: Path, settings: Settings, path: Path, *, quiet: bool) -> None:
    """Make the bundle, see whether it shows the same problem, write it and say what is in it."""
    proto, machine = _read(model), _machine(settings.target)
    writable(path)
    with progress_on_stderr(quiet) as progress:
        progress("compiling the model as it is", 0, 0)
        before = outcome(model, settings, progress)
        progress("removing names and weights", 0, 0)
        try:
            scrambled, names = scramble(proto, Folder(model.parent))
            content = scrambled.SerializeToString(deterministic=True)
        except (Refusal, EncodeError, ValueError) as error:
            raise Failure(
                ExitCode.INPUT, f"cannot remove the names and weights of {model}: {error}; "
                "describe the problem in words, `ccnn check` shows what is in the model",
            ) from error  # fmt: skip
        frozen = _frozen(model, settings, names) if settings.freeze else {}
        settings = replace(settings, freeze=tuple(new for each in frozen.values() for new in each))
        files: dict[str, bytes] = {MODEL: content, MACHINE: machine}
        if settings.from_mapping is not None:
            files[MAPPING] = _renamed_mapping(read_bytes(settings.from_mapping), names)
            settings = replace(settings, from_mapping=Path(MAPPING))
        progress("compiling what is left of it", 0, 0)
        after = _compile_there(files, settings, progress)
    said = {str(model): MODEL, model.name: MODEL} | {p: f[0] for p, f in frozen.items()}
    if "/" in settings.target or settings.target.endswith((".yaml", ".yml")):
        said[settings.target] = MACHINE
    same = _same(before, after, names, said)
    shown = after if same else _without_names(before, names, model)
    files[FACTS] = _facts(settings, shown, same)
    files[README] = _readme(settings, shown, same, after)
    packed = pack(files)
    write_file(path, lambda stream: stream.write(packed))
    if not quiet:
        sys.stdout.write(_summary(path, shown, same, after))


def _read(model: Path) -> ModelProto:
    data = read_bytes(model)
    try:
        proto = ModelProto.FromString(data)
    except DecodeError as error:
        raise Failure(
            ExitCode.INPUT, f"{model} is no ONNX model that can be read, so it cannot be packed; "
            "`ccnn check` says more about it",
        ) from error  # fmt: skip
    return proto


def outcome(model: Path, settings: Settings, progress: Progress) -> Outcome:
    """Do what `ccnn compile` does, up to the files it would write, and say how that ended."""
    try:
        compilation, report, trace = compile_and_cost(model, settings, progress, warn=False)
        output_files(compilation, report, trace, model)
    except Exception as error:  # whatever goes wrong is what the bundle is about
        failure = explain(error)
        frames = tuple(_frames(error)) if failure.code is ExitCode.INTERNAL else ()
        return Outcome(failure.code, None, type(error).__name__, str(failure), frames)
    return Outcome(ExitCode.OK, {name: report["totals"][name] for name in _TOTALS})


def _frames(error: BaseException) -> Iterator[str]:
    """The traceback, innermost last, with files below ccnn or a package, never a path."""
    if error.__cause__ is not None:
        yield from _frames(error.__cause__)
        yield f"then {type(error).__name__}"
    for frame in extract_tb(error.__traceback__):
        path = Path(frame.filename)
        if path.is_relative_to(_PACKAGE):
            name = (Path("ccnn") / path.relative_to(_PACKAGE)).as_posix()
        else:
            name = re.sub(r".*(site-packages|/lib/python[\d.]+)/", "", path.as_posix())
            name = path.name if name.startswith("/") else name
        yield f"{name}:{frame.lineno} in {frame.name}"


def _frozen(model: Path, settings: Settings, names: Names) -> dict[str, tuple[str, ...]]:
    """What each pattern of --freeze becomes: the new names of the parameters that it means."""
    try:
        graph = read_model(model, ReadOptions(batch=settings.batch, loss=settings.loss)).graph
    except ReadError:
        return {pattern: (_NOTHING,) for pattern in settings.freeze}
    parameters = [t.name for t in graph.of_role("parameter")]
    return {
        pattern: tuple(names[p] for p in parameters if fnmatchcase(p, pattern)) or (_NOTHING,)
        for pattern in settings.freeze
    }


def _renamed_mapping(text: bytes, names: Names) -> bytes:
    """A mapping whose nodes have their new names."""
    lines = []
    for line in text.decode("utf-8", "replace").splitlines():
        node, colon, rest = line.partition(": ")
        lines.append(f"{names[node] or names.in_text(node)}{colon}{rest}\n")
    return "".join(lines).encode()


def _machine(target: str) -> bytes:
    """The machine whole; the file as it is when it is refused. Raises when there is none."""
    try:
        load_machine(target)
        return machine_text(target).encode()
    except MachineError:
        path = Path(target)
        if not path.is_file():
            raise
        return path.read_bytes()


def _compile_there(files: dict[str, bytes], settings: Settings, progress: Progress) -> Outcome:
    """Compile what the bundle will hold, in a folder of its own."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for name, content in files.items():
            (folder / name).write_bytes(content)
        target = str(folder / MACHINE)
        mapping = folder / MAPPING if MAPPING in files else None
        there = replace(settings, target=target, from_mapping=mapping)
        found = outcome(folder / MODEL, there, progress)
    return replace(found, message=found.message.replace(f"{place}/", ""))


def _same(before: Outcome, after: Outcome, names: Names, said: dict[str, str]) -> bool:
    """True when the outcomes differ in names only; `said` is what else is called otherwise."""
    if (before.exit_code, before.error) != (after.exit_code, after.error):
        return False
    message = before.message
    for old, new in said.items():
        message = message.replace(old, new)
    return before.totals == after.totals and names.same(message, after.message)


def _without_names(found: Outcome, names: Names, model: Path) -> Outcome:
    message = names.in_text(found.message.replace(str(model), MODEL).replace(model.name, MODEL))
    message = re.sub(r"(?<![\w.])/[^\s:;,'\"]*/", "", message)
    return replace(found, message=message)


def _command(settings: Settings) -> list[str]:
    """The command that compiles the bundle, with every option spelled out."""
    words = ["ccnn", "compile", MODEL, "--target", MACHINE]
    searched = "auto" in (settings.serialize, settings.recompute)
    for field, value in asdict(settings).items():
        option = "--" + field.replace("_", "-")
        if field in _OF_A_SEARCH and not searched:
            continue
        if field in ("target", "assumed") or value in (None, False, ()):
            continue
        if value is True:
            words.append(option)
        elif isinstance(value, tuple):
            words += [word for each in value for word in (option, each)]
        else:
            words += [option, str(value)]
    return words


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "system": platform.system()}
    found["processor"] = platform.machine()
    found["ccnn"] = version("ccnn")
    for line in requires("ccnn") or ():
        name = re.split(r"[^\w.-]", line)[0]
        if "extra ==" not in line:
            try:
                found[name] = version(name)
            except PackageNotFoundError:
                found[name] = "missing"
    return found


def _facts(settings: Settings, shown: Outcome, same: bool) -> bytes:
    facts: dict[str, Any] = {
        "schema": "ccnn-bugreport/1",
        "command": _command(settings),
        "versions": _versions(),
        "outcome": asdict(shown),
        "the_bundle_shows_the_same": same,
    }
    return (json.dumps(facts, indent=1) + "\n").encode()


def _readme(settings: Settings, shown: Outcome, same: bool, after: Outcome) -> bytes:
    text = _TEXT.format(
        version=version("ccnn"), model=MODEL, machine=MACHINE, facts=FACTS,
        command=" ".join(_command(settings)), there=shown.words,
        here="the same" if same else f"NOT the same but {after.words}",
    )  # fmt: skip
    return text.encode()


def pack(files: dict[str, bytes]) -> bytes:
    """A zip archive of these files; the same files give the same bytes."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(files):
            entry = zipfile.ZipInfo(name)  # dated 1980, whenever it is made
            entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
            archive.writestr(entry, files[name])
    return content.getvalue()


def _summary(path: Path, shown: Outcome, same: bool, after: Outcome) -> str:
    verdict = (
        "the model in it gives the same"
        if same
        else f"but the model in it does not give the same: {after.words}; say so in your report"
    )
    return (
        f"wrote {path} ({path.stat().st_size:,} bytes)\n"
        f"  outcome        {shown.words}\n"
        f"                 {verdict}\n"
        f"  {MODEL:14} numbered names, made-up weights, no other texts\n"
        f"  {MACHINE:14} the machine, whole\n"
        f"  {FACTS:14} command, options, versions, outcome\n"
        f"  {README:14} what is in it\n"
        "Nothing was sent anywhere. Look it over, then add it to your report.\n"
    )
