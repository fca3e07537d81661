"""`ccnn advise MODEL`: what each parameter of the machine is worth, from compiling and executing
the step again with half and twice of it.

Everything is chosen anew for the changed machine, tiles included, so the answer is what a
buyer of that machine would see.  Energies of single actions are left as they are: a larger
buffer would in truth cost more a byte.  Latencies stay the same number of cycles when the clock
changes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, TextIO

from rich.table import Table

from ccnn.compiler.codegen import CodegenError
from ccnn.compiler.driver import CompileOptions, compile_model
from ccnn.compiler.mapping import MappingError
from ccnn.compiler.report.fields import quantity
from ccnn.compiler.report.show import console_for
from ccnn.targets.machine import Machine, MachineError, load_machine
from ccnn.targets.simulator import simulate

PARAMETERS = {
    "array": ("rows", "cols"),
    "clock_ghz": ("clock_ghz",),
    "gbuf_bytes": ("gbuf_bytes",),
    "dram_bandwidth_gib_s": ("dram_bandwidth_gib_s",),
    "dram_latency_cycles": ("dram_latency_cycles",),
    "lanes": ("lanes",),
    "vector_startup_cycles": ("vector_startup_cycles",),
    "acc_rows": ("acc_rows",),
    "lbuf_h_rows": ("lbuf_h_rows",),
    "barrier_cycles": ("barrier_cycles",),
}
"""What is varied: a name, and the fields of Machine that change together."""

BOUGHT = ("array", "clock_ghz", "gbuf_bytes", "dram_bandwidth_gib_s", "lanes", "acc_rows",
          "lbuf_h_rows")  # fmt: skip
"""Those of which more costs money, so that less of them may be a saving."""

FACTORS = (Fraction(1, 2), Fraction(2))


@dataclass(frozen=True)
class Outcome:
    """What a step took on one machine."""

    seconds: float
    cycles: int
    dram_bytes: int
    energy_pj: float


@dataclass(frozen=True)
class Trial:
    """One parameter changed by one factor; `outcome` is None when nothing could be compiled."""

    parameter: str
    factor: float
    value: str
    outcome: Outcome | None
    reason: str = ""


@dataclass(frozen=True)
class Advice:
    """The step as it is, and every trial."""

    machine: str
    base: Outcome
    trials: tuple[Trial, ...]


def changed(machine: Machine, parameter: str, factor: Fraction) -> Machine | None:
    """The machine with a parameter scaled; None where that leaves it as it is or makes it 0."""
    new: dict[str, Any] = {}
    for name in PARAMETERS[parameter]:
        old = getattr(machine, name)
        value = float(old * factor) if isinstance(old, float) else int(old * factor)
        if value == old or value <= 0:
            return None
        new[name] = value
    return machine.resized(**new)


def advise(
    model: str | Path | Any,
    options: CompileOptions,
    parameters: Sequence[str] = tuple(PARAMETERS),
    progress: Callable[[str, int, int], None] | None = None,
) -> Advice:
    """Compile and execute the step on the machine and on each variation of it.

    Raises what `compile_model` raises for the machine as it is.
    """
    base = options.target if isinstance(options.target, Machine) else load_machine(options.target)
    wanted = [(p, f) for p in parameters for f in FACTORS]
    tell = progress or (lambda stage, done, total: None)
    tell("the machine as it is", 0, len(wanted) + 1)
    first = _outcome(model, options, base)
    trials = []
    for done, (parameter, factor) in enumerate(wanted):
        tell(f"{parameter} x {float(factor):g}", done + 1, len(wanted) + 1)
        machine = changed(base, parameter, factor)
        if machine is not None:
            trials.append(_trial(model, options, machine, parameter, factor))
    return Advice(base.name, first, tuple(trials))


def _trial(
    model: Any, options: CompileOptions, machine: Machine, parameter: str, factor: Fraction
) -> Trial:
    value = " x ".join(f"{getattr(machine, name):,}" for name in PARAMETERS[parameter])
    try:
        return Trial(parameter, float(factor), value, _outcome(model, options, machine))
    except (MappingError, CodegenError, MachineError) as error:
        return Trial(parameter, float(factor), value, None, str(error))


def _outcome(model: Any, options: CompileOptions, machine: Machine) -> Outcome:
    c = compile_model(model, replace(options, target=machine))
    trace = simulate(c.program, c.machine)
    return Outcome(trace.seconds, trace.cycles, trace.dram_bytes, trace.energy_pj)


def advice_json(advice: Advice) -> dict[str, Any]:
    """Advice as plain values for JSON."""
    return {"schema": "ccnn-advise/1", **asdict(advice)}


def show_advice(advice: Advice, out: TextIO) -> None:
    """Print the trials, the one that saves most time first, and a sentence about it."""
    console = console_for(out)
    b = advice.base
    console.print(
        f"{advice.machine} as it is: {quantity('seconds', b.seconds)}, {b.cycles:,} cycles, "
        f"{quantity('dram_read_bytes', b.dram_bytes)} DRAM, {quantity('energy_pj', b.energy_pj)}"
    )
    table = Table(title="what if", title_justify="left", box=None, pad_edge=False)
    for column in ("parameter", "factor", "value", "time", "cycles", "DRAM", "energy"):
        table.add_column(column, justify="left" if column == "parameter" else "right")
    for trial in sorted(advice.trials, key=lambda t: (_time(t), t.parameter)):
        o = trial.outcome
        cells = (
            [_change(getattr(o, f.name), getattr(b, f.name)) for f in fields(Outcome)]
            if o
            else ["cannot be compiled", "", "", ""]
        )
        table.add_row(trial.parameter, f"x {trial.factor:g}", trial.value, *cells)
    console.print(table)
    console.print(conclusion(advice))


def _time(trial: Trial) -> float:
    return trial.outcome.seconds if trial.outcome else float("inf")


def _change(after: float, before: float) -> str:
    return f"{100 * (after - before) / before:+.1f} %" if before else "-"


def conclusion(advice: Advice) -> str:
    """What to buy next, in a sentence that follows from the trials."""
    known = [t for t in advice.trials if t.outcome]
    if not known:
        return "nothing could be tried"
    best = min(known, key=lambda t: (_time(t), t.parameter))
    gain = 1 - _time(best) / advice.base.seconds if advice.base.seconds else 0.0
    if gain < 0.01:
        return "no single parameter saves 1 % of the time: the step is limited by its order"
    idle = sorted(
        {
            t.parameter
            for t in known
            if t.parameter in BOUGHT and t.factor < 1 and _time(t) <= 1.01 * advice.base.seconds
        }
    )
    words = f"{best.parameter} x {best.factor:g} saves most: {100 * gain:.1f} % of the time"
    return words + (f"; half would do of {', '.join(idle)}" if idle else "")
