"""Schedules of published methods as executed programs, and what their DRAM traffic consists of.

A schedule is a pass that groups the lowered step; the program made from it is proven safe and
simulated.  Used by mbs.py, which has the tables.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import onnx

sys.path.insert(0, str(Path(__file__).parent))

from zoo import NETWORKS

from ccnn.compiler.codegen import generate, make_context
from ccnn.compiler.mapper import map_graph
from ccnn.compiler.mapping import GroupDoesNotFit
from ccnn.compiler.reader import ReadOptions, read_model
from ccnn.passes.autodiff import Optimizer, differentiate
from ccnn.passes.batch_axis import batch_axis
from ccnn.passes.graph import Graph
from ccnn.passes.norm_policy import NormPolicy
from ccnn.passes.pipeline import Pass, run_pipeline
from ccnn.passes.steps import storage_roots
from ccnn.targets.machine import Machine
from ccnn.targets.program import Program
from ccnn.targets.simulator import Trace, simulate
from ccnn.targets.verify import verify_program

MIB = 2**20
DTYPE = "bfloat16"

ROOM_FOR_TILES = (0.1, 0.25, 0.4, 0.6)
"""Shares of the buffer, tried in turn; the published method reserves nothing."""

Schedule = Callable[[int, int], Pass | None]
"""Bytes of buffer and bytes of it for streaming tiles, to the pass that groups; None: no groups."""


@dataclass(frozen=True)
class Executed:
    """One program and what it did."""

    graph: Graph
    trace: Trace
    seconds: float
    """Of this process, to map, generate, prove and simulate."""

    @property
    def figures(self) -> dict[str, object]:
        """What is recorded of it."""
        t = self.trace
        return {
            "dram_bytes": t.dram_bytes,
            "cycles": t.cycles,
            "energy_pj": round(t.energy_pj),
            "macs": t.macs,
            "groups": len(self.graph.groups),
            "classes": traffic_classes(self.graph, t),
            "seconds": round(self.seconds, 1),
        }


def batch_of(name: str) -> int:
    """Samples per core, as published: 64 for AlexNet, else 32."""
    return 64 if name == "alexnet" else 32


@lru_cache(maxsize=2)
def model(name: str) -> onnx.ModelProto:
    """A network of the zoo, or a file."""
    return NETWORKS[name]() if name in NETWORKS else onnx.load(name)


@lru_cache(maxsize=2)
def lowered(name: str, norm: str) -> Graph:
    """A training step in primitives: SGD without momentum, as `ccnn compile` does by default."""
    read = read_model(model(name), ReadOptions(batch=batch_of(name)))
    graph = NormPolicy(norm)(read.graph)
    return run_pipeline(differentiate(graph, read.loss, optimizer=Optimizer()))


def execute(graph: Graph, machine: Machine, schedule: Schedule) -> Executed:
    """The step on this schedule; groups that do not fit beside their tiles get more room for
    tiles, and are dissolved when that does not help."""
    began = time.process_time()
    program, grouped = None, graph
    for share in ROOM_FOR_TILES:
        each = schedule(machine.gbuf_bytes, int(share * machine.gbuf_bytes))
        grouped = run_pipeline(graph, (each,)) if each else graph
        try:
            program = _program(grouped, machine)
            break
        except GroupDoesNotFit:
            continue
    while program is None:
        try:
            program = _program(grouped, machine)
        except GroupDoesNotFit as error:
            kept = tuple(g for g in grouped.groups if error.group not in g.nodes)
            grouped = replace(grouped, groups=kept)
    return Executed(grouped, proven_and_executed(program, machine), time.process_time() - began)


def proven_and_executed(program: Program, machine: Machine) -> Trace:
    """What a program takes; SystemExit when it is not proven safe."""
    if findings := verify_program(program, machine):
        raise SystemExit(f"{program.name}: not safe: {findings[0]}")
    return simulate(program, machine)


def _program(graph: Graph, machine: Machine):
    context = make_context(graph, machine, DTYPE)
    return generate(context, map_graph(context), graph.name)


def traffic_classes(graph: Graph, trace: Trace) -> dict[str, int]:
    """DRAM bytes by what they are for.

    weights      parameters, read
    sums         gradients of parameters, partial ones too, and the updated parameters
    stored       made forward, read backward: written, read again and re-read
    features     made and read forward only
    gradients    of features
    rest         inputs, statistics, constants
    """
    root = storage_roots(graph)
    wide = {root[t] for t in batch_axis(graph).rows}
    backward = {root[i] for n in graph.nodes if n.phase == "backward" for i in n.inputs if i}
    phase = {root[o]: n.phase for n in graph.nodes for o in n.outputs if o and n.op != "reshape"}
    found: Counter[str] = Counter()
    for t in trace.tensors:
        name = t.name.removesuffix("/partial")
        store = root.get(name, name)
        role = graph[store].role if store in graph.tensors else "value"
        if role in ("parameter", "state"):
            kind = "weights"
        elif role != "value":
            kind = "rest"
        elif store not in wide:
            kind = "sums" if phase.get(store) in ("backward", "update") else "rest"
        elif phase.get(store) == "backward":
            kind = "gradients"
        else:
            kind = "stored" if store in backward else "features"
        found[kind] += t.read_bytes + t.write_bytes
    return dict(sorted(found.items()))
