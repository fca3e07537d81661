"""From a simulated trace to the report: a plain dictionary, as it stands in report.json.

Nothing here is computed from anything but the trace of the executed program, save the bounds,
which come from the graph.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

from ccnn.compiler.choose import Choice, Tried
from ccnn.compiler.driver import Compilation
from ccnn.compiler.report.bounds import Precision, bound_values, bounds
from ccnn.compiler.report.fields import SCHEMA_VERSION, field_table
from ccnn.targets.binary import encode
from ccnn.targets.machine import Machine
from ccnn.targets.program import DTYPE_BYTES, Program
from ccnn.targets.simulator.trace import Counts, LayerTrace, Trace

_UNNAMED = {"update": "(optimizer)", "loss": "(loss)", "backward": "(gradient sums)"}
"""Rows for the work that serves no single ONNX node, by phase."""

OBJECTIVE_TOTALS = {
    "time": ("cycles",),
    "traffic": ("dram_read_bytes", "dram_write_bytes"),
    "energy": ("energy_pj",),
}
"""The totals, and bounds of totals, that an objective adds up."""

_UNITS = {"load": "DRAM", "store": "DRAM"}
"""Engines that share one resource, and its name; the others are resources of their own."""


def build_report(
    compilation: Compilation,
    trace: Trace,
    baseline: Trace,
    assumed: Sequence[str] = (),
    baseline_program: Program | None = None,
) -> dict[str, Any]:
    """The report of a compilation; `baseline` is the trace of the conventional schedule, and
    `baseline_program` its program where that is another than the compilation's.

    `assumed` are sentences about options that were not given; the reader's are added.
    """
    c = compilation
    found = bounds(c.primitives, c.machine, precision_of(c), trace.macs)
    size = len(encode(c.program))
    usual = len(encode(baseline_program)) if baseline_program else size
    report = {
        "schema_version": SCHEMA_VERSION,
        "ccnn_version": version("ccnn"),
        "model": _model(c),
        "machine": machine_facts(c.machine),
        "options": _options(c),
        "totals": {**trace_totals(trace), "program_bytes": size},
        "bounds": bound_values(found),
        "baseline": {**trace_totals(baseline), "program_bytes": usual},
        "layers": layer_rows(trace, c.machine, _kinds(c)),
        "groups": group_rows(c),
        "engines": engine_rows(trace),
        "energy": [{"action": a, "count": n, "energy_pj": pj} for a, n, pj in trace.energy],
        "tensors": [
            {"tensor": t.name, "dram_read_bytes": t.read_bytes, "dram_write_bytes": t.write_bytes}
            for t in trace.tensors
        ],
        "assumed_defaults": [*assumed, *c.model.report.assumed],
        "notes": _notes(c),
        "not_modelled": list(trace.not_modelled),
        "fields": field_table(),
        "bound_formulas": {
            b.key: {"direction": b.direction, "formula": b.formula, "why": b.why} for b in found
        },
    }
    if c.choice is not None:
        report["choice"] = choice_facts(c.choice, bound_values(found))
    return report


def choice_facts(choice: Choice, bound: Mapping[str, float]) -> dict[str, Any]:
    """How a schedule was chosen: what was tried, and how far the best is from what is possible."""
    keys = OBJECTIVE_TOTALS[choice.objective]
    lowest = sum(bound[key] for key in keys)
    best = next(t for t in choice.tried if t.candidate == choice.best)
    reached = best.figure(choice.objective)
    return {
        "objective": choice.objective,
        "budget_seconds": choice.budget_seconds,
        "bound_of": list(keys),
        "bound": lowest,
        "reached": reached,
        "gap": reached / lowest if lowest else None,
        "tried": [{**asdict(t.candidate), **_became(t), "best": t is best} for t in choice.tried],
    }


def _became(tried: Tried) -> dict[str, Any]:
    return {k: v for k, v in asdict(tried).items() if k != "candidate"}


def group_rows(c: Compilation) -> list[dict[str, Any]]:
    """One row per group: its kernel, nodes, samples of a pass, passes, tensors that stay."""
    inputs = [c.lowered[name].shape for name in c.model.inputs]
    batch = inputs[0][0] if inputs and inputs[0] else 1
    code = {ref.name for ref in c.program.nodes}
    rows = []
    for group in c.lowered.groups:
        nodes = [n for n in group.nodes if n in code]
        size = group.sub_batch or batch
        rows.append(
            {
                "kernel": nodes[0],
                "nodes": nodes,
                "sub_batch": size,
                "passes": -(-batch // size),
                "resident": len(group.resident),
                "kept": len(group.kept),
            }
        )
    return rows


def _notes(c: Compilation) -> list[str]:
    """What the reader noticed, and what the user's choices change in the results."""
    notes = [str(p) for p in c.model.report.problems if p.severity != "error"]
    if c.options.norm != "exact":
        notes.append(
            f"note: batch norms were replaced (--norm {c.options.norm}): the step computes "
            "something else than the model"
        )
    if c.machine.cores > 1:
        cores, samples = c.machine.cores, _model(c)["batch"]
        notes.append(
            f"note: {c.machine.name} has {cores} cores, and each runs this program on {samples} of "
            f"{cores * samples} samples; all figures are of one core, batch norms see its samples "
            "only; the others' gradients are read from memory, as inputs peer1/NAME …, behind the "
            "barrier that all cores reach at the same time, with equal programs and parts"
        )
    return notes


def precision_of(c: Compilation) -> Precision:
    """Bytes of the program's elements."""
    return Precision(DTYPE_BYTES[c.program.dtype], DTYPE_BYTES[c.program.accum])


def trace_totals(trace: Trace) -> dict[str, float]:
    """The totals of a trace by the keys of a report."""
    return {
        "cycles": trace.cycles,
        "seconds": trace.seconds,
        "macs": trace.macs,
        "dram_read_bytes": trace.dram_read_bytes,
        "dram_write_bytes": trace.dram_write_bytes,
        "gbuf_bytes": trace.gbuf_bytes,
        "lbuf_bytes": trace.lbuf_bytes,
        "energy_pj": trace.energy_pj,
        "pe_utilisation": trace.pe_utilisation,
    }


def program_totals(c: Compilation, trace: Trace) -> dict[str, float]:
    """The totals of an executed program, its size too."""
    return {**trace_totals(trace), "program_bytes": len(encode(c.program))}


def machine_facts(machine: Machine) -> dict[str, Any]:
    """The numbers of a machine that a report is read by."""
    return {
        "name": machine.name,
        "description": machine.description,
        "fingerprint": machine.fingerprint,
        "rows": machine.rows,
        "cols": machine.cols,
        "arrays": machine.arrays,
        "clock_ghz": machine.clock_ghz,
        "gbuf_bytes": machine.gbuf_bytes,
        "dram_bandwidth_gib_s": machine.dram_bandwidth_gib_s,
    }


def _model(c: Compilation) -> dict[str, Any]:
    graph = c.lowered
    inputs = [graph[name].shape for name in c.model.inputs]
    return {
        "name": c.program.name,
        "file": c.model.report.model,
        "batch": inputs[0][0] if inputs and inputs[0] else 1,
        "inputs": {name: list(graph[name].shape) for name in c.model.inputs},
        "loss": c.model.loss,
        "parameters": sum(t.size for t in graph.of_role("parameter")),
        "nodes": len(graph.nodes),
    }


def _options(c: Compilation) -> dict[str, Any]:
    o, opt = c.options, c.options.optimizer
    return {
        "target": c.machine.name,
        "batch": o.batch,
        "dtype": o.dtype,
        "optimizer": {
            "kind": opt.kind,
            "lr": opt.lr,
            "momentum": opt.momentum,
            "weight_decay": opt.weight_decay,
            "nesterov": opt.nesterov,
        },
        "loss": o.loss,
        "freeze": list(o.freeze),
        "input_gradient": o.input_gradient,
        "dropout": o.dropout,
        "seed": o.seed,
        "norm": o.norm,
        "serialize": o.serialize,
        "recompute": o.recompute,
        "macs_per_byte": o.macs_per_byte,
        "rows": o.rows,
        "gradients": o.gradients,
        "mapper": o.mapper,
        "interleave": o.interleave,
        "from_mapping": o.pinned is not None,
    }


def _kinds(c: Compilation) -> dict[str, str]:
    """ONNX node to what the graph made of it, before it was expanded into primitives."""
    kinds: dict[str, list[str]] = defaultdict(list)
    for node in c.model.graph.nodes:
        if node.origin and node.op not in kinds[node.origin]:
            kinds[node.origin].append(node.op)
    return {origin: "+".join(ops) for origin, ops in kinds.items()}


def layer_rows(
    trace: Trace, machine: Machine, kinds: Mapping[str, str] | None = None
) -> list[dict[str, Any]]:
    """One row per ONNX node and phase, in the order in which they first ran.

    `kinds` says what each ONNX node is; without it the ops executed have to do.
    """
    groups: dict[tuple[str, str], list[LayerTrace]] = defaultdict(list)
    for layer in trace.layers:
        groups[layer_key(layer.origin, layer.phase)].append(layer)
    known = kinds or {}
    return [
        {"node": node, "kind": known.get(node) or "+".join(_ops(group)), "phase": phase}
        | _figures(group, trace, machine)
        for (node, phase), group in groups.items()
    ]


def layer_key(origin: str, phase: str) -> tuple[str, str]:
    """The name and phase of the row that the work of a node is counted in."""
    return origin or _UNNAMED.get(phase, "(other)"), phase


def _ops(group: Sequence[LayerTrace]) -> list[str]:
    return list(dict.fromkeys(layer.op for layer in group))


def _figures(group: Sequence[LayerTrace], trace: Trace, machine: Machine) -> dict[str, Any]:
    cycles = sum(layer.cycles for layer in group)
    totals = _sum([layer.counts for layer in group])
    busy: Counter[str] = Counter()
    for layer in group:
        for engine, at_work in layer.busy:
            busy[_UNITS.get(engine, engine)] += at_work
    unit, most = max(busy.items(), key=lambda item: (item[1], item[0]), default=("nothing", 0))
    # Neighbouring layers overlap, so that an engine may work longer than the layer counts.
    occupied = max(cycles, most)
    capacity = occupied * machine.peak_macs_per_cycle
    return {
        "ops": _ops(group),
        "cycles": cycles,
        "seconds": cycles / (machine.clock_ghz * 1e9),
        **totals,
        "pe_utilisation": totals["macs"] / capacity if capacity else 0.0,
        "share": cycles / trace.cycles if trace.cycles else 0.0,
        "bound_by": unit,
        "bound_share": most / occupied if occupied else 0.0,
    }


def _sum(counts: Sequence[Counts]) -> dict[str, Any]:
    return {
        "macs": sum(c.macs for c in counts),
        "dram_read_bytes": sum(c.dram_read_bytes for c in counts),
        "dram_write_bytes": sum(c.dram_write_bytes for c in counts),
        "gbuf_bytes": sum(c.gbuf_read_bytes + c.gbuf_write_bytes for c in counts),
        "lbuf_bytes": sum(c.lbuf_bytes for c in counts),
        "energy_pj": sum(c.energy_pj for c in counts),
        "instructions": sum(c.instructions for c in counts),
    }


def engine_rows(trace: Trace) -> list[dict[str, Any]]:
    """Per engine: cycles at work, and cycles stalled by what was waited for."""
    return [
        {"engine": e.name, "busy_cycles": e.busy_cycles, "stalls": dict(e.stalls)}
        for e in trace.engines
    ]
