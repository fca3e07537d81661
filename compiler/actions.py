"""What the commands do: the steps of each, from the given file to the printed result."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from ccnn.compiler.ablate import ablate as ablation
from ccnn.compiler.annotate import annotate_model
from ccnn.compiler.arrays import batch_of, check_inputs, read_arrays
from ccnn.compiler.driver import (
    Compilation,
    CompileOptions,
    GraphWatcher,
    compile_model,
    with_links,
)
from ccnn.compiler.dump import GraphDump
from ccnn.compiler.execution import run_steps, verify_values
from ccnn.compiler.failure import HOW_TO_REPORT, ExitCode, Failure
from ccnn.compiler.files import need, output_folder, read_bytes, writable, write_file
from ccnn.compiler.lists import print_json
from ccnn.compiler.mapping import Mapping as TilingMap
from ccnn.compiler.mapping import MappingError, parse_mapping
from ccnn.compiler.options import Settings
from ccnn.compiler.progress import Progress, progress_on_stderr
from ccnn.compiler.recall import Product, keep, product_key, recall
from ccnn.compiler.report import build_report, layers_csv, load_report, show_report
from ccnn.compiler.report.detail import kernel_details
from ccnn.compiler.report.html import report_html
from ccnn.compiler.report.perfetto import perfetto_trace
from ccnn.compiler.results import show_results, show_simulation, show_verdicts
from ccnn.passes.autodiff import Optimizer
from ccnn.passes.graph import GraphError
from ccnn.passes.recompute import MACS_PER_BYTE
from ccnn.targets.binary import decode, encode
from ccnn.targets.machine import Machine, load_machine
from ccnn.targets.program import Program
from ccnn.targets.simulator import SimulationError, Trace, simulate
from ccnn.targets.text import parse_program, print_program
from ccnn.targets.vector import VectorError
from ccnn.targets.verify import verify_program


def compile_to_folder(
    model: Path,
    settings: Settings,
    folder: Path | None,
    *,
    as_json: bool,
    quiet: bool,
    verbose: bool,
    dump_passes: Path | None = None,
    ablate: bool = False,
    no_cache: bool = False,
) -> None:
    """Compile, prove safe, simulate and report; write the files when there is a folder.

    An unchanged model, machine and options are found in the cache, unless there are passes to dump.
    """
    need(model)
    cached = not no_cache and dump_passes is None
    key = product_key(model, settings, ablate) if cached else None
    known = recall(key) if key is not None else None
    graphs = GraphDump(dump_passes)
    if folder is None and known is None:
        with progress_on_stderr(quiet) as progress:
            _, report, _ = compile_and_cost(model, settings, progress, graphs.see, ablate=ablate)
        _show_compiled(report, (), as_json=as_json, quiet=quiet, verbose=verbose)
        return
    with output_folder(folder) if folder is not None else nullcontext() as output:
        product = known
        if product is None:
            with progress_on_stderr(quiet) as progress:
                c, report, trace = compile_and_cost(
                    model, settings, progress, graphs.see, ablate=ablate
                )
                progress("writing files", 0, 0)
                product = Product(output_files(c, report, trace, model), warnings_of(c))
            if key is not None:
                keep(key, product)
        else:
            sys.stderr.writelines(product.warnings)
        placed = output.write(product.files) if output is not None else ()
        report = json.loads(product.files["report.json"])
        _show_compiled(report, placed, as_json=as_json, quiet=quiet, verbose=verbose)
        if known is not None and not quiet and not as_json:
            sys.stdout.write("unchanged, so taken from the cache; --no-cache compiles it anew\n")


def compile_and_cost(
    model: Path,
    settings: Settings,
    progress: Progress,
    on_graph: GraphWatcher | None = None,
    warn: bool = True,
    ablate: bool = False,
) -> tuple[Compilation, dict[str, Any], Trace]:
    """The compilation, its report and its trace; `warn` says warnings on standard error, `ablate`
    adds the strong baseline and what each step saved."""
    compilation = _compile(model, compile_options(settings), progress, on_graph, warn)
    progress("proving the program safe", 0, 0)
    _prove_safe(compilation)
    progress("simulating", 0, 0)
    trace = simulate(compilation.program, compilation.machine)
    baseline, usual = trace, compilation
    if compilation.options != compilation.options.conventional:
        usual = _compile(
            model,
            compilation.options.conventional,
            lambda stage, done, total: progress(f"baseline: {stage}", done, total),
            warn=False,
        )
        baseline = simulate(usual.program, usual.machine)
    report = build_report(compilation, trace, baseline, settings.assumed, usual.program)
    if ablate:
        progress("ablating", 0, 0)
        report |= ablation(
            compilation,
            trace,
            (usual, baseline),
            lambda options: _compile(model, options, progress, warn=False),
        )
    return compilation, report, trace


def output_files(
    compilation: Compilation, report: Mapping[str, Any], trace: Trace, model: Path
) -> dict[str, str | bytes]:
    """Name to content of everything that `ccnn compile` writes."""
    c = compilation
    details = kernel_details(c.program, c.machine, trace.kernels)
    page = report_html(report, c.program, c.machine, c.mapping.tilings, trace, details)
    return {
        "program.asm": print_program(compilation.program),
        "program.bin": encode(compilation.program),
        "mapping.txt": compilation.mapping.text(),
        "layers.csv": layers_csv(report["layers"]),
        "report.json": json.dumps(report, indent=1, allow_nan=False) + "\n",
        "report.html": page,
        "trace.pftrace": perfetto_trace(report, c.program, c.machine, details),
        "model.annotated.onnx": annotate_model(model, c, report),
    }


def _show_compiled(
    report: Mapping[str, Any], placed: Any, *, as_json: bool, quiet: bool, verbose: bool
) -> None:
    if as_json:
        print_json(report)
    elif not quiet:
        show_report(report, sys.stdout, verbose)
        for path in placed:
            sys.stdout.write(f"wrote {path} ({path.stat().st_size:,} bytes)\n")


def compile_options(
    settings: Settings, batch: int | None = None, input_gradient: bool = False
) -> CompileOptions:
    """The command line's settings as the compiler takes them; `batch` if they have none."""
    optimizer = Optimizer(
        kind=settings.optimizer,
        lr=settings.lr,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        nesterov=settings.nesterov,
    )
    return CompileOptions(
        target=settings.target,
        batch=batch if settings.batch is None else settings.batch,
        dtype=settings.dtype,
        optimizer=optimizer,
        loss=settings.loss,
        freeze=settings.freeze,
        dropout=settings.dropout,
        input_gradient=input_gradient,
        seed=settings.seed,
        norm=settings.norm,
        serialize=settings.serialize,
        recompute=settings.recompute,
        macs_per_byte=settings.macs_per_byte or MACS_PER_BYTE,
        rows=settings.rows,
        mapper=settings.mapper,
        interleave=settings.interleave,
        gradients=settings.gradients,
        pinned=None if settings.from_mapping is None else read_mapping(settings.from_mapping),
        objective=settings.objective or "time",
        budget=settings.budget,
    )


def read_mapping(path: Path) -> TilingMap:
    """The mapping in a file. Raises Failure for anything else."""
    try:
        return parse_mapping(read_bytes(path).decode("utf-8"))
    except UnicodeDecodeError as error:
        raise Failure(ExitCode.INPUT, f"{path} is not UTF-8 text; save it as UTF-8") from error
    except MappingError as error:
        raise Failure(ExitCode.INPUT, f"{path}: {error}") from error


def _prove_safe(compilation: Compilation) -> None:
    findings = verify_program(compilation.program, compilation.machine)
    if findings:
        raise Failure(
            ExitCode.INTERNAL,
            "internal error: the compiled program is not safe:\n"
            + _first_lines(findings)
            + "\nThis is a bug in ccnn, not in your model. "
            + HOW_TO_REPORT,
        )


def _first_lines(findings: Any, count: int = 10) -> str:
    lines = [f"  {finding}" for finding in findings[:count]]
    if len(findings) > count:
        lines.append(f"  and {len(findings) - count} more")
    return "\n".join(lines)


def _compile(
    model: Path,
    options: CompileOptions,
    progress: Progress,
    on_graph: GraphWatcher | None = None,
    warn: bool = True,
) -> Compilation:
    """Compile, and say on standard error what the reader found odd."""
    try:
        compilation = compile_model(model, options, progress, on_graph)
    except GraphError as error:
        # The one mistake of the user that only shows once the parameters are known.
        if options.freeze and "freezes nothing" in str(error):
            raise Failure(
                ExitCode.USAGE,
                f"--freeze: {error}; names are those of the ONNX initializers, and * stands for "
                "anything",
            ) from error
        raise
    sys.stderr.writelines(warnings_of(compilation) if warn else ())
    return compilation


def warnings_of(compilation: Compilation) -> tuple[str, ...]:
    """What is said on standard error about the model, as lines."""
    return tuple(f"ccnn: {p}\n" for p in compilation.model.report.of("warning"))


def run_with_inputs(
    model: Path,
    settings: Settings,
    inputs: Path,
    steps: int,
    save: Path | None,
    *,
    quiet: bool,
    verbose: bool,
) -> None:
    """Execute some training steps on given arrays; show the results and save them."""
    need(model)
    arrays = read_arrays(inputs)
    if save is not None:
        writable(save)
    options = compile_options(settings, batch=batch_of(arrays), input_gradient=True)
    with progress_on_stderr(quiet) as progress:
        compilation = _compile(model, options, progress)
        check_inputs(compilation.step, arrays, inputs)
        progress("proving the program safe", 0, 0)
        _prove_safe(compilation)
        results = run_steps(compilation, arrays, steps, progress)
    if save is not None:
        write_file(save, lambda stream: _write_npz(stream, results))
    if not quiet:
        show_results(results, sys.stdout, verbose)
        if save is not None:
            sys.stdout.write(f"wrote {save} ({len(results)} arrays)\n")


def _write_npz(stream: Any, arrays: Mapping[str, Any]) -> None:
    # Made in memory: a zip archive seeks, which a pipe given as FILE.npz cannot.
    content = io.BytesIO()
    np.savez(content, **arrays)
    stream.write(content.getbuffer())


def verify_model(model: Path, settings: Settings, *, quiet: bool, verbose: bool) -> None:
    """Prove the program safe, execute it with random data, compare with the interpreter."""
    need(model)
    with progress_on_stderr(quiet) as progress:
        compilation = _compile(model, compile_options(settings, input_gradient=True), progress)
        progress("proving the program safe", 0, 0)
        _prove_safe(compilation)
        progress("comparing values", 0, 0)
        errors = verify_values(compilation, settings.seed)
    # Written so that an error that is not a number is out of bounds as well.
    bad = [e for e in errors if not e.error <= e.bound]
    if not quiet:
        show_verdicts(compilation, errors, sys.stdout, verbose)
    if bad:
        raise Failure(
            ExitCode.FAILED,
            f"{len(bad)} of {len(errors)} tensors are out of bounds; with --dtype float64 rounding "
            "is out of the way: what remains then is a bug in ccnn, please report it",
        )


def read_program(path: Path) -> Program:
    """A program from its text (.asm) or its bytes (.bin)."""
    if path.suffix not in (".asm", ".bin"):
        raise Failure(
            ExitCode.USAGE,
            f"{path} is neither a .asm nor a .bin file; give one that `ccnn compile` wrote",
        )
    content = read_bytes(path)
    if path.suffix == ".bin":
        return decode(content)
    try:
        return parse_program(content.decode())
    except UnicodeDecodeError as error:
        raise Failure(
            ExitCode.INPUT, f"{path} is not text (byte {error.start}); is it a .bin file?"
        ) from error


def simulate_file(
    path: Path, target: str | None, *, as_json: bool, quiet: bool, verbose: bool
) -> None:
    """Prove a program file safe and simulate its timing."""
    with progress_on_stderr(quiet) as progress:
        progress("reading the program", 0, 0)
        program = read_program(path)
        machine = _machine_of(program, target)
        progress("proving the program safe", 0, 0)
        findings = verify_program(program, machine)
        if findings:
            raise Failure(
                ExitCode.FAILED,
                f"{path} is not safe on {machine.name}:\n{_first_lines(findings)}\n"
                "An unsafe program is not simulated; mend it, or compile it again for this machine",
            )
        progress("simulating", 0, 0)
        trace = _simulate(path, program, machine)
    show_simulation(
        program, machine, trace, sys.stdout, as_json=as_json, quiet=quiet, verbose=verbose
    )


def _simulate(path: Path, program: Program, machine: Machine) -> Trace:
    try:
        return simulate(program, machine)
    except (SimulationError, VectorError) as error:
        raise Failure(ExitCode.INPUT, f"{path} does what no machine can: {error}") from error


def _machine_of(program: Program, target: str | None) -> Machine:
    return with_links(load_machine(target if target is not None else program.machine))


def show_folder(folder: Path, *, as_json: bool, quiet: bool, verbose: bool) -> None:
    """Print the report that an earlier compilation left in a folder."""
    report = load_report(folder)
    if as_json:
        print_json(report)
    elif not quiet:
        show_report(report, sys.stdout, verbose)
