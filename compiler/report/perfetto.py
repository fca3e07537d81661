"""trace.json: the step as a Chrome trace, which Perfetto (ui.perfetto.dev) opens.

Process 1 holds the engines as threads, process 2 the kernels, process 3 counters.  Slices of one
thread must nest, so an instruction's slice ends where its engine takes the next one, and its
arguments say when its result was written.  Of each kernel only the first instructions are
slices; what an engine did after them is one slice with its totals.  Times are microseconds.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from ccnn.compiler.report.detail import KernelDetail
from ccnn.compiler.report.payload import layer_numbers
from ccnn.targets.machine import Machine
from ccnn.targets.program import ENGINES, Program
from ccnn.targets.simulator.trace import Event

_ENGINES, _KERNELS, _COUNTERS = 1, 2, 3


def perfetto_trace(
    report: Mapping[str, Any],
    program: Program,
    machine: Machine,
    details: Sequence[KernelDetail],
) -> str:
    """The step as Chrome trace JSON, one event a line."""
    rows = layer_numbers(report, program)
    scale = 1e-3 / machine.clock_ghz
    events = _names(program)
    for detail in details:
        layers = [report["layers"][n] for n in dict.fromkeys(rows[n] for n in detail.nodes)]
        names = [f"{row['node']} ({row['phase']})" for row in layers]
        events.append(_kernel(detail, layers, names, scale))
        for number, engine in enumerate(ENGINES):
            events += _engine(program, detail, number, engine, scale)
        events += _counters(detail, scale)
    head = {
        "displayTimeUnit": "ns",
        "otherData": {
            "program": program.name,
            "machine": machine.name,
            "clock_ghz": machine.clock_ghz,
        },
    }
    lines = ",\n".join(json.dumps(e, separators=(",", ":")) for e in events)
    return json.dumps(head)[:-1] + ', "traceEvents": [\n' + lines + "\n]}\n"


def _names(program: Program) -> list[dict[str, Any]]:
    """What processes and threads are called."""
    made = []
    for pid, name in ((_ENGINES, "engines"), (_KERNELS, program.name), (_COUNTERS, "counters")):
        made.append(
            {"ph": "M", "name": "process_name", "pid": pid, "tid": 0, "args": {"name": name}}
        )
        made.append(
            {"ph": "M", "name": "process_sort_index", "pid": pid, "tid": 0,
             "args": {"sort_index": {_KERNELS: 0, _ENGINES: 1, _COUNTERS: 2}[pid]}}
        )  # fmt: skip
    threads = [(_KERNELS, 1, "kernels")]
    threads += [(_ENGINES, n + 1, engine) for n, engine in enumerate(ENGINES)]
    for pid, tid, name in threads:
        made.append(
            {"ph": "M", "name": "thread_name", "pid": pid, "tid": tid, "args": {"name": name}}
        )
        made.append(
            {"ph": "M", "name": "thread_sort_index", "pid": pid, "tid": tid,
             "args": {"sort_index": tid}}
        )  # fmt: skip
    return made


def _slice(
    name: str, pid: int, tid: int, start: int, end: int, scale: float, args: Mapping[str, Any]
) -> dict[str, Any]:
    return {
        "ph": "X",
        "name": name,
        "pid": pid,
        "tid": tid,
        "ts": round(start * scale, 6),
        "dur": round(end * scale - start * scale, 6),
        "args": dict(args),
    }


def _kernel(
    detail: KernelDetail, layers: Sequence[Mapping[str, Any]], names: Sequence[str], scale: float
) -> dict[str, Any]:
    args = {
        "layers": ", ".join(names),
        "cycles": detail.cycles,
        "macs": detail.counts.macs,
        "dram_read_bytes": detail.counts.dram_read_bytes,
        "dram_write_bytes": detail.counts.dram_write_bytes,
        "instructions": detail.counts.instructions,
    }
    made = _slice(detail.name, _KERNELS, 1, detail.start, detail.end, scale, args)
    return {**made, "cat": layers[0]["phase"] if layers else "empty"}


def _engine(
    program: Program, detail: KernelDetail, number: int, engine: str, scale: float
) -> list[dict[str, Any]]:
    """The slices of one engine in one kernel."""
    own = [e for e in detail.events if e.engine == engine]
    made = []
    for place, event in enumerate(own):
        end = min(event.end, own[place + 1].start) if place + 1 < len(own) else event.end
        args = {
            "node": program.nodes[event.node].name,
            "written_after_cycles": event.end - event.start,
        }
        made.append(
            _slice(event.opcode, _ENGINES, number + 1, detail.start + event.start,
                   detail.start + end, scale, args)
        )  # fmt: skip
    trace = detail.engines[number]
    left = trace.counts.instructions - len(own)
    if left > 0:
        made.append(_rest(detail, own, number, left, scale))
    return made


def _rest(
    detail: KernelDetail, own: Sequence[Event], number: int, left: int, scale: float
) -> dict[str, Any]:
    """What an engine did after the instructions that are shown one by one."""
    trace = detail.engines[number]
    start = detail.start + max((e.end for e in own), default=0)
    stalls: dict[str, int] = defaultdict(int)
    for cause, cycles in trace.stalls:
        stalls[f"waits_for_{cause}"] += cycles
    args = {"busy_cycles_of_kernel": trace.busy_cycles, **stalls}
    name = f"{left} more instructions"
    return _slice(name, _ENGINES, number + 1, min(start, detail.end), detail.end, scale, args)


def _counters(detail: KernelDetail, scale: float) -> list[dict[str, Any]]:
    """DRAM bytes and MACs per cycle, averaged over each kernel."""
    cycles = max(1, detail.cycles)
    counts = detail.counts
    values = {
        "DRAM bytes per cycle": (counts.dram_read_bytes + counts.dram_write_bytes) / cycles,
        "MACs per cycle": counts.macs / cycles,
    }
    return [
        {"ph": "C", "name": name, "pid": _COUNTERS, "tid": 0, "ts": round(detail.start * scale, 6),
         "args": {"value": round(value, 3)}}
        for name, value in values.items()
    ]  # fmt: skip
