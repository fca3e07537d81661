"""--ablate: what each step from the conventional schedule to this program saved, all executed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from ccnn.compiler.driver import Compilation, CompileOptions
from ccnn.compiler.report.build import program_totals
from ccnn.targets.simulator import Trace, simulate

WATERFALL_TOTALS = (
    "cycles", "seconds", "dram_read_bytes", "dram_write_bytes", "gbuf_bytes", "energy_pj",
)  # fmt: skip
"""The totals of a row."""


@dataclass(frozen=True)
class Step:
    """One more thing that is different, and the options with it and all before."""

    name: str
    says: str
    options: CompileOptions


def steps_to(options: CompileOptions) -> tuple[Step, ...]:
    """From the conventional schedule to `options`, in which nothing is left to be chosen.

    Each step changes something, and the last has exactly these options.
    """
    o = options.conventional
    found = [Step("conventional", "every layer on the whole mini-batch, through DRAM", o)]

    def change(name: str, says: str, **changed: Any) -> None:
        nonlocal o
        if any(getattr(o, key) != value for key, value in changed.items()):
            o = replace(o, **changed)
            found.append(Step(name, says, o))

    if options.serialize != "none":
        change("fused layers", "each layer with the vector work around it", serialize="fused")
    change("norm", f"batch norms replaced, --norm {options.norm}", norm=options.norm)
    change(
        "serialized",
        f"runs of layers in sub-batches, --serialize {options.serialize}",
        serialize=options.serialize,
        tiles=options.tiles,
        rows=options.rows,
    )
    change(
        "recomputed",
        f"--recompute {options.recompute}",
        recompute=options.recompute,
        macs_per_byte=options.macs_per_byte,
    )
    change(
        "halves",
        "the array on one half of a sub-batch, vectors on the other",
        halves=options.halves,
    )
    change(
        "unwritten", "gradients that are taken on chip, --no-gradients", gradients=options.gradients
    )
    change("interleaved", f"--interleave {options.interleave}", interleave=options.interleave)
    if replace(o, objective=options.objective, budget=options.budget) != options:
        found.append(Step("further options", "tilings taken from --from-mapping", options))
    found[-1] = replace(found[-1], options=options)
    return tuple(found)


def ablate(
    compilation: Compilation,
    trace: Trace,
    baseline: tuple[Compilation, Trace],
    compiled: Callable[[CompileOptions], Compilation],
) -> dict[str, Any]:
    """The entries `strong_baseline` and `waterfall` of a report.

    `compiled` compiles the same model; the strong baseline is the conventional schedule with each
    layer fused with the vector work around it.
    """
    done = [baseline, (compilation, trace)]

    def executed(options: CompileOptions) -> tuple[Compilation, Trace]:
        found = next((pair for pair in done if pair[0].options == options), None)
        if found is None:
            c = compiled(options)
            found = c, simulate(c.program, c.machine)
            done.append(found)
        return found

    strong = executed(replace(compilation.options.conventional, serialize="fused"))
    rows = []
    for step in steps_to(compilation.options):
        totals = program_totals(*executed(step.options))
        kept = {key: totals[key] for key in WATERFALL_TOTALS}
        rows.append({"name": step.name, "says": step.says, "totals": kept})
    return {"strong_baseline": program_totals(*strong), "waterfall": rows}
