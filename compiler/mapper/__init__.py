"""Graph + Machine to Mapping; identical GEMMs are solved once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from ccnn.compiler.codegen import GEMMS, gemm_of, group_kernel, plan_groups, tiling_key
from ccnn.compiler.codegen.emit import CodegenError
from ccnn.compiler.codegen.gemm import Gemm
from ccnn.compiler.codegen.group import group_scope
from ccnn.compiler.codegen.plan import GroupPlan
from ccnn.compiler.codegen.scope import Scope
from ccnn.compiler.mapper.rule import choose_tiling
from ccnn.compiler.mapping import GroupDoesNotFit, Mapping, MappingError, Tiling, parse_mapping
from ccnn.passes.graph import Node

__all__ = ["Mapping", "MappingError", "Tiling", "map_graph", "parse_mapping"]


_ATTEMPTS, _LESS = 4, 0.7
"""How often the room of a group's tiles is lowered, and by what factor."""


def signature(gemm: Gemm) -> tuple[object, ...]:
    """What decides a tiling; equal signatures get equal tilings."""
    node = gemm.node
    shapes = tuple(gemm.graph[t].shape for t in (*node.inputs, *node.outputs) if t)
    dtypes = tuple(gemm.dtypes[t] for t in (*node.inputs, *node.outputs) if t)
    levels = tuple(gemm.levels.values())
    return (node.op, node.attrs, shapes, dtypes, bool(gemm.bias), levels, gemm.staying)


def map_graph(context: Scope, progress: Callable[[int, int], None] | None = None) -> Mapping:
    """A tiling for every GEMM of the graph; raises MappingError when one cannot fit.

    The nodes of a group share the buffer with what stays in it: the room for their tiles is
    lowered until the group's kernel fits.
    """
    solved: dict[tuple[object, ...], Tiling] = {}
    tilings: dict[str, Tiling] = {}
    rooms: dict[str, int] = {}
    plans = plan_groups(context)
    grouped = {n.name for plan in plans for n in plan.nodes}
    alone = [n for n in context.graph.nodes if n.op in GEMMS and n.name not in grouped]
    total = len(plans) + len(alone)
    for done, plan in enumerate(plans):
        found, rooms[plan.name] = _map_group(context, plan, solved)
        tilings |= found
        if progress:
            progress(done + 1, total)
    for done, node in enumerate(alone, len(plans)):
        tilings[node.name] = _tiling(context, node, context.machine.gbuf_bytes, solved)
        if progress:
            progress(done + 1, total)
    return Mapping(context.machine.name, tilings, rooms)


def _tiling(
    scope: Scope, node: Node, room: int, solved: dict[tuple[object, ...], Tiling]
) -> Tiling:
    gemm = gemm_of(scope, node)
    key = (*signature(gemm), room)
    if key not in solved:
        solved[key] = choose_tiling(gemm, replace(scope.machine, gbuf_bytes=room))
    return solved[key]


def _map_group(
    context: Scope, plan: GroupPlan, solved: dict[tuple[object, ...], Tiling]
) -> tuple[dict[str, Tiling], int]:
    """Tilings for the nodes of a group and the room they were given."""
    samples = list(dict.fromkeys(r.part.size for r in plan.runs))
    numbers = dict.fromkeys((n.name for n in plan.nodes), 0)
    scopes = {size: group_scope(context, plan, size) for size in samples}
    last: Exception | None = None
    for attempt in range(_ATTEMPTS):
        room = int(plan.budget * _LESS**attempt)
        try:
            tilings = {
                tiling_key(n, plan, size): _tiling(scopes[size], n, room, solved)
                for size in samples
                for n in plan.nodes
                if n.op in GEMMS
            }
            group_kernel(context, tilings, replace(plan, budget=room), numbers)
            return tilings, room
        except (CodegenError, MappingError) as error:
            last = error
    raise GroupDoesNotFit(
        plan.name,
        f"the group of '{plan.name}' does not fit the buffer with any tiles; use a smaller "
        f"sub-batch or keep less ({last})",
    )
