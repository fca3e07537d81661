"""Which layers interleave their gradients: those whose executed kernels then take less.

Both forms of a layer are compiled and simulated, the two nodes as kernels of their own and as
one; what is better by the objective is kept: fewer cycles, bytes to and from DRAM, or energy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from ccnn.compiler.choose import Objective
from ccnn.compiler.codegen import generate
from ccnn.compiler.codegen.scope import Scope
from ccnn.compiler.mapping import Mapping
from ccnn.passes.graph import Graph
from ccnn.targets.program import Program
from ccnn.targets.simulator import simulate

Settle = Callable[[Graph], tuple[Scope, Mapping]]
"""Maps a graph; groups that cannot fit are gone from the scope's graph."""


def keep_what_pays(
    apart: Graph, together: Graph, settle: Settle, objective: Objective = "time"
) -> Graph:
    """The graph `together` with those of its groups that `apart` lacks only where they pay."""
    context, mapping = settle(replace(together, groups=apart.groups))
    alone = generate(context, mapping)
    paired, mapping = settle(together)
    grouped = generate(paired, mapping)
    kept = []
    for group in paired.graph.groups:
        if group in apart.groups:
            kept.append(group)
            continue
        one = _cost(grouped, group.nodes[:1], paired, objective)
        if one < _cost(alone, group.nodes, paired, objective):
            kept.append(group)
    return replace(together, groups=tuple(kept))


def _cost(
    program: Program, names: Sequence[str], scope: Scope, objective: Objective
) -> tuple[float, int, int]:
    """What the kernels called so are worth by the objective; of equals time, then bytes decide."""
    kernels = tuple(k for k in program.kernels if k.name in names)
    trace = simulate(replace(program, kernels=kernels), scope.machine)
    first = {"time": 0, "traffic": trace.dram_bytes, "energy": trace.energy_pj}[objective]
    return first, trace.cycles, trace.dram_bytes
