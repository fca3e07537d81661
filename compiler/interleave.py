"""Which layers interleave their gradients, and how: the form whose executed kernels take least.

Every form of a layer is compiled and simulated, the two nodes as kernels of their own and as
one, by tiles or by elements; what is best by the objective is kept: fewer cycles, bytes to and
from DRAM, or energy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from ccnn.compiler.choose import Objective
from ccnn.compiler.codegen import generate
from ccnn.compiler.codegen.scope import Scope
from ccnn.compiler.mapping import Mapping
from ccnn.passes.graph import Graph, Group
from ccnn.targets.program import Program
from ccnn.targets.simulator import simulate

Settle = Callable[[Graph], tuple[Scope, Mapping]]
"""Maps a graph; groups that cannot fit are gone from the scope's graph."""
Cost = tuple[float, int, int]


def keep_what_pays(
    apart: Graph, forms: Sequence[Graph], settle: Settle, objective: Objective = "time"
) -> Graph:
    """The graph with, of the groups that some of the `forms` has and `apart` lacks, those that pay.

    The forms differ in their groups alone.
    """
    context, mapping = settle(replace(forms[0], groups=apart.groups))
    alone = generate(context, mapping)
    best: dict[tuple[str, ...], tuple[Cost, Group]] = {}
    for form in forms:
        paired, mapping = settle(form)
        program = generate(paired, mapping)
        for group in paired.graph.groups:
            if group in apart.groups:
                continue
            rival = (
                best[group.nodes][0]
                if group.nodes in best
                else (_cost(alone, group.nodes, paired, objective))
            )
            cost = _cost(program, group.nodes[:1], paired, objective)
            if cost < rival:
                best[group.nodes] = cost, group
    place = {node.name: k for k, node in enumerate(forms[0].nodes)}
    kept = (group for _, group in best.values())
    ordered = sorted((*apart.groups, *kept), key=lambda group: place[group.nodes[0]])
    return replace(forms[0], groups=tuple(ordered))


def _cost(program: Program, names: Sequence[str], scope: Scope, objective: Objective) -> Cost:
    """What the kernels called so are worth by the objective; of equals time, then bytes decide."""
    kernels = tuple(k for k in program.kernels if k.name in names)
    trace = simulate(replace(program, kernels=kernels), scope.machine)
    first = {"time": 0, "traffic": trace.dram_bytes, "energy": trace.energy_pj}[objective]
    return first, trace.cycles, trace.dram_bytes
