"""What `run`, `verify` and `simulate` print."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TextIO

import numpy as np
from rich.table import Table
from rich.text import Text

from ccnn.compiler.driver import Compilation
from ccnn.compiler.execution import TensorError
from ccnn.compiler.lists import print_json
from ccnn.compiler.report.build import engine_rows, layer_rows, machine_facts, trace_totals
from ccnn.compiler.report.show import console_for, show_trace
from ccnn.targets.binary import encode
from ccnn.targets.machine import Machine
from ccnn.targets.program import Program
from ccnn.targets.simulator import Trace

_SHOWN = 10


def show_results(results: Mapping[str, np.ndarray], out: TextIO, verbose: bool = False) -> None:
    """The losses, and of every result (or the largest gradients) its shape and size."""
    console = console_for(out)
    losses = [key for key in results if key.startswith("loss")]
    for key in losses:
        console.print(Text(f"{key:<10} {float(results[key]):.9g}"))
    rows = [key for key in results if key not in losses]
    title = "results"
    if not verbose:
        grads = [key for key in rows if key.startswith("grad/")]
        rows = sorted(grads, key=lambda key: -_largest(results[key]))[:_SHOWN]
        title = f"largest {len(rows)} of {len(grads)} gradients"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for column in ("", "shape", "largest", "norm"):
        table.add_column(column, justify="right" if column in ("largest", "norm") else "left")
    for key in rows:
        value = np.asarray(results[key], np.float64)
        shape = "x".join(map(str, value.shape)) or "scalar"
        table.add_row(
            Text(key), shape, f"{_largest(value):.3e}", f"{np.linalg.norm(value.ravel()):.3e}"
        )
    console.print(table)


def _largest(value: np.ndarray) -> float:
    return float(np.abs(np.asarray(value, np.float64)).max()) if value.size else 0.0


def show_verdicts(
    compilation: Compilation, errors: Sequence[TensorError], out: TextIO, verbose: bool = False
) -> None:
    """The worst tensors, each with its error and the bound it is held to."""
    console = console_for(out)
    worst = sorted(errors, key=_gravity, reverse=True)
    shown = worst if verbose else worst[:_SHOWN]
    good = sum(e.error <= e.bound for e in errors)
    options = compilation.options
    console.print(
        Text(
            f"{compilation.program.name} on {compilation.machine.name} in {options.dtype}: the "
            f"program is safe, and {good} of {len(errors)} tensors agree with float64",
            style="bold",
        )
    )
    table = Table(title=f"worst {len(shown)}", title_justify="left", box=None, pad_edge=False)
    for column in ("tensor", "error", "bound", ""):
        table.add_column(column, justify="right" if column in ("error", "bound") else "left")
    for e in shown:
        verdict = "ok" if e.error <= e.bound else "OUT OF BOUNDS"
        table.add_row(Text(e.name), f"{e.error:.2e}", f"{e.bound:.2e}", verdict)
    console.print(table)


def _gravity(e: TensorError) -> float:
    """Error in units of its bound; what is not a number comes first."""
    if np.isnan(e.error):
        return float("inf")
    return e.error / e.bound if e.bound else float(e.error > 0)


def show_simulation(
    program: Program,
    machine: Machine,
    trace: Trace,
    out: TextIO,
    *,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Totals, layers and engines of a program file's simulation."""
    report = {
        "program": program.name,
        "machine": machine_facts(machine),
        "totals": {**trace_totals(trace), "program_bytes": len(encode(program))},
        "layers": layer_rows(trace, machine),
        "engines": engine_rows(trace),
        "not_modelled": list(trace.not_modelled),
    }
    if as_json:
        print_json(report)
    elif not quiet:
        show_trace(report, out, verbose)
