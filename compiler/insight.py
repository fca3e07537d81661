"""What explain, advise and `report --html` do, from the given files to the printed result."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ccnn.compiler.actions import compile_options, read_program
from ccnn.compiler.advise import advice_json, advise, show_advice
from ccnn.compiler.driver import Compilation, compile_model
from ccnn.compiler.failure import ExitCode, Failure
from ccnn.compiler.files import output_folder, read_bytes
from ccnn.compiler.lists import print_json
from ccnn.compiler.mapping import parse_mapping
from ccnn.compiler.options import Settings
from ccnn.compiler.progress import Progress, progress_on_stderr
from ccnn.compiler.report.html import report_html
from ccnn.compiler.report.load import load_report
from ccnn.targets.machine import Machine, MachineError, load_machine


@contextmanager
def compiled(
    model: Path, settings: Settings, quiet: bool
) -> Iterator[tuple[Compilation, Progress]]:
    """The compilation of a model, with progress shown until the block is left."""
    read_bytes(model)  # says at once when the file cannot be read
    with progress_on_stderr(quiet) as progress:
        yield compile_model(model, compile_options(settings), progress), progress


def advise_model(
    model: Path, settings: Settings, parameters: Sequence[str], *, as_json: bool, quiet: bool
) -> None:
    """Try the machine's parameters and print what each is worth."""
    read_bytes(model)
    with progress_on_stderr(quiet) as progress:
        advice = advise(model, compile_options(settings), parameters, progress)
    if as_json:
        print_json(advice_json(advice))
    elif not quiet:
        show_advice(advice, sys.stdout)


def write_page(folder: Path, target: str | None, quiet: bool) -> None:
    """Make report.html anew from the report, program and mapping in a folder."""
    report = load_report(folder)
    program = read_program(folder / "program.bin")
    mapping = parse_mapping(read_bytes(folder / "mapping.txt").decode("utf-8", "replace"))
    machine = _machine(folder, report["machine"], target)
    with progress_on_stderr(quiet) as progress, output_folder(folder) as output:
        progress("executing each kernel", 0, 0)
        (path,) = output.write(
            {"report.html": report_html(report, program, machine, mapping.tilings)}
        )
    if not quiet:
        sys.stdout.write(f"wrote {path} ({path.stat().st_size:,} bytes)\n")


def _machine(folder: Path, facts: dict[str, str], target: str | None) -> Machine:
    """The machine that a report is about; Failure when it is not at hand."""
    advice = "give the machine file it was compiled for with --target"
    try:
        machine = load_machine(target or facts["name"])
    except MachineError as error:
        if target:
            raise
        raise Failure(
            ExitCode.MACHINE, f"{folder} was compiled for a machine of your own, {error}; {advice}"
        ) from error
    if machine.fingerprint != facts["fingerprint"]:
        raise Failure(
            ExitCode.MACHINE,
            f"{folder} was compiled for a machine {facts['name']} with fingerprint "
            f"{facts['fingerprint']}, and this {machine.name} has {machine.fingerprint}; {advice}",
        )
    return machine
