"""Which unit runs a grouped convolution: the array or the lanes, whichever executes it at less.

For both, the kernel of the node alone is written and simulated; in a group for the samples, rows
and regions it has there.  A unit is left out whose multiplications alone take longer than the
other's kernel.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from ccnn.compiler.codegen import FREE, gemm_of, write_node
from ccnn.compiler.codegen.emit import KernelWriter
from ccnn.compiler.codegen.scope import Scope
from ccnn.compiler.cut import Cut, Triple
from ccnn.compiler.mapper.cuts import tile_products
from ccnn.compiler.mapping import Mapping as Tilings
from ccnn.compiler.mapping import Tiling
from ccnn.passes.graph import Graph, Node
from ccnn.targets.machine import Machine
from ccnn.targets.program import NodeRef, Placed, Program
from ccnn.targets.simulator import Trace, simulate

Cuts = Mapping[tuple[Triple, str], Cut]


def lane_cycles(products: Mapping[Triple, int], machine: Machine) -> int:
    """Cycles that the vector unit multiplies at least."""
    macs = sum(m * n * k * count for (m, n, k), count in products.items())
    return -(-macs // machine.lanes)


def array_cycles(
    products: Mapping[Triple, int], tiling: Tiling, cuts: Cuts, machine: Machine
) -> int:
    """Cycles that rows stream through the array, or weights shift into it, whichever is more; 0
    where nothing was cut, or for several arrays, the last part of which may be shorter."""
    modes = {mode.name: mode for mode in machine.array_modes}
    streams = shifts = 0
    for sizes, count in products.items():
        cut = cuts.get((sizes, tiling.flow))
        if cut is None or machine.arrays > 1:
            return 0
        for strip in cut.strips:
            for run in strip.runs:
                blocks, shared = count * strip.count * run.count, modes[run.mode].sub_waves
                streams += blocks * sum(-(-rows // shared) * n for rows, n in cut.waves)
                held = run.depth if cut.flow.dataflow == "ws" else 0
                shifts += blocks * held * sum(n for _, n in cut.waves)
    return max(streams, shifts)


@dataclass(frozen=True)
class Alone:
    """Executes the nodes of a graph one by one."""

    graph: Graph
    """With whole tensors, whatever part of them a node has in its scope."""

    @cached_property
    def nodes(self) -> tuple[Node, ...]:
        """Those with code, numbered as in a program."""
        return tuple(n for n in self.graph.nodes if n.op not in FREE)

    def execute(self, scope: Scope, node: Node, tiling: Tiling, cuts: Cuts) -> Trace:
        """The kernel of one node by itself; raises CodegenError when it does not fit."""
        scope = replace(scope, partial={})  # no iteration before has put any there
        number = next(i for i, n in enumerate(self.nodes) if n.name == node.name)
        kw = KernelWriter(node.name, number, scope.machine.gbuf_bytes)
        regions = (*scope.regions.values(), *scope.sums.values())
        kw.regions = {region.name: region for region in regions}
        mapping = Tilings(scope.machine.name, {node.name: tiling}, {}, cuts)
        write_node(scope, kw, mapping, node, node.name)
        refs = tuple(NodeRef(n.name, n.op, n.origin, n.phase) for n in self.nodes)
        # where tensors lie costs nothing
        placed = tuple(
            Placed(t.name, t.shape, scope.dtypes[t.name], t.role, 0)
            for t in self.graph.tensors.values()
        )
        dtype = scope.dtypes[node.outputs[0]]
        program = Program(
            node.name, scope.machine.name, dtype, scope.accum, 0, placed, refs, (kw.finish(),)
        )
        return simulate(program, scope.machine)

    def cheaper(
        self, scope: Scope, node: Node, array: Tiling, lanes: Tiling, cuts: Cuts, objective: str
    ) -> Tiling:
        """The tiling of the unit that is better by the objective, the array's when none is."""
        products = [
            tile_products(gemm_of(scope, node, tiling.on_lanes), tiling)
            for tiling in (array, lanes)
        ]
        offers = [
            (array_cycles(products[0], array, cuts, scope.machine), 0, array),
            (lane_cycles(products[1], scope.machine), 1, lanes),
        ]
        best: tuple[tuple[float, ...], int, Tiling] | None = None
        for least, place, tiling in sorted(offers, key=lambda offer: offer[:2]):
            if best is not None and objective == "time" and least > best[0][0]:
                break
            cost = _rank(self.execute(scope, node, tiling, cuts), objective)
            if best is None or (cost, place) < best[:2]:
                best = cost, place, tiling
        return best[2] if best else array


def _rank(trace: Trace, objective: str) -> tuple[float, ...]:
    """What is kept low by the objective, and what decides between equals."""
    if objective == "traffic":
        return trace.dram_bytes, trace.cycles
    if objective == "energy":
        return trace.energy_pj, trace.cycles
    return trace.cycles, trace.dram_bytes
