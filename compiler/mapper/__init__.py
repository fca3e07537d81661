"""Graph + Machine to Mapping; identical GEMMs are solved once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from ccnn.compiler.codegen import GEMMS, gemm_of, group_kernel, pairs_of, plan_groups
from ccnn.compiler.codegen.bands import Turn
from ccnn.compiler.codegen.emit import CodegenError
from ccnn.compiler.codegen.gemm import Gemm
from ccnn.compiler.codegen.group import group_scope, tiling_key, with_guests
from ccnn.compiler.codegen.lanes import may_use_lanes
from ccnn.compiler.codegen.pair import pair_gemm
from ccnn.compiler.codegen.plan import GroupPlan
from ccnn.compiler.codegen.scope import Scope
from ccnn.compiler.cut import FLOWS, Cut, Flow, Triple, flow_named
from ccnn.compiler.mapper.cuts import (
    choose_cuts,
    cuts_by_rule,
    fastest_pieces,
    tile_products,
    usable_flows,
)
from ccnn.compiler.mapper.pairs import pair_tiling
from ccnn.compiler.mapper.pinned import check_pinned, pinned_tiling
from ccnn.compiler.mapper.rule import choose_tiling
from ccnn.compiler.mapper.units import Alone
from ccnn.compiler.mapping import GroupDoesNotFit, Mapping, MappingError, Tiling, parse_mapping
from ccnn.passes.graph import Node
from ccnn.passes.interleave_gradients import Pair
from ccnn.targets.machine import Machine

__all__ = [
    "Mapping",
    "MappingError",
    "Tiling",
    "map_graph",
    "map_group",
    "map_node",
    "parse_mapping",
]


_ATTEMPTS, _LESS = 4, 0.7
"""How often the room of a group's tiles is lowered, and by what factor."""


def signature(gemm: Gemm) -> tuple[object, ...]:
    """What decides a tiling; equal signatures get equal tilings."""
    node = gemm.node
    shapes = tuple(gemm.graph[t].shape for t in (*node.inputs, *node.outputs) if t)
    dtypes = tuple(gemm.dtypes[t] for t in (*node.inputs, *node.outputs) if t)
    levels = tuple(gemm.levels.values())
    kind = type(gemm).__name__
    sizes = (bool(gemm.bias), levels, gemm.staying, gemm.beside, gemm.lanes)
    return (kind, node.attrs, shapes, dtypes, *sizes)


def map_graph(
    context: Scope,
    progress: Callable[[int, int], None] | None = None,
    mapper: str = "exact",
    pinned: Mapping | None = None,
    objective: str = "time",
) -> Mapping:
    """A tiling for every GEMM of the graph; raises MappingError when one cannot fit.

    The nodes of a group share the buffer with what stays in it: the room for their tiles is
    lowered until the group's kernel fits.  The `mapper` cuts each product for the array: 'exact'
    as proven best by the `objective`, 'heuristic' by FlexSA's rule, which needs no cuts written
    down.  Tilings, cuts and rooms that `pinned` has are taken as they are; MappingError when they
    cannot be.
    """
    search = _Search(
        Alone(context.graph), mapper == "exact", pinned or Mapping(context.machine.name), objective
    )
    tilings: dict[str, Tiling] = {}
    rooms: dict[str, int] = {}
    plans = plan_groups(context)
    pairs = pairs_of(context.graph)
    grouped = {n.name for plan in (*plans, *pairs) for n in plan.nodes}
    alone = [n for n in context.graph.nodes if n.op in GEMMS and n.name not in grouped]
    if pinned is not None:
        keys = [key for plan in plans for key, *_ in _gemms(plan)]
        keys += [pair.dx.name for pair in pairs]
        check_pinned(pinned, context.machine, [*keys, *(n.name for n in alone)])
    total = len(plans) + len(pairs) + len(alone)
    for done, plan in enumerate(plans):
        found, rooms[plan.name] = _map_group(context, plan, search)
        tilings |= found
        if progress:
            progress(done + 1, total)
    for done, pair in enumerate(pairs, len(plans)):
        tilings[pair.dx.name] = search.pair(context, pair)
        if progress:
            progress(done + 1, total)
    for done, node in enumerate(alone, len(plans) + len(pairs)):
        tilings[node.name] = search.tiling(context, node, context.machine.gbuf_bytes, node.name)
        if progress:
            progress(done + 1, total)
    return Mapping(context.machine.name, tilings, rooms, search.cuts)


def map_group(
    context: Scope, plan: GroupPlan, mapper: str = "exact", objective: str = "time"
) -> Mapping:
    """The mapping of one group, as `map_graph` makes it; raises MappingError."""
    search = _Search(
        Alone(context.graph), mapper == "exact", Mapping(context.machine.name), objective
    )
    tilings, room = _map_group(context, plan, search)
    return Mapping(context.machine.name, tilings, {plan.name: room}, search.cuts)


def map_node(context: Scope, node: Node, mapper: str = "exact", objective: str = "time") -> Mapping:
    """The mapping of a node that is in no group; raises MappingError."""
    empty = Mapping(context.machine.name)
    search = _Search(Alone(context.graph), mapper == "exact", empty, objective)
    tiling = search.tiling(context, node, context.machine.gbuf_bytes, node.name)
    return Mapping(context.machine.name, {node.name: tiling}, {}, search.cuts)


@dataclass
class _Search:
    """What is known so far: identical problems are solved once."""

    alone: Alone
    exact: bool
    pinned: Mapping
    objective: str = "time"
    solved: dict[tuple[object, ...], Tiling] = field(default_factory=dict)
    cuts: dict[tuple[Triple, str], Cut] = field(default_factory=dict)

    def tiling(
        self, scope: Scope, node: Node, room: int, name: str, grouped: bool = False
    ) -> Tiling:
        """The tiling of a node in so many bytes of buffer, `name`d in the mapping; its products
        are added to the cuts."""
        gemm = gemm_of(scope, node)
        tiling = pinned_tiling(gemm, name, scope.machine, self.pinned, grouped)
        if tiling is not None:
            if tiling.on_lanes:
                return tiling
            _, cuts = self.cut(gemm, tiling, scope.machine, (flow_named(tiling.flow),))
            self.cuts |= cuts
            return tiling
        key = (*signature(gemm), room, grouped, *_way(scope, gemm))
        if key not in self.solved:
            roomy = replace(scope.machine, gbuf_bytes=room)
            tiling = choose_tiling(gemm, roomy)
            flows = usable_flows(gemm, tiling, scope.machine, grouped)
            tiling, cuts = self.cut(gemm, tiling, scope.machine, flows)
            if may_use_lanes(node):
                lanes = choose_tiling(gemm_of(scope, node, True), roomy)
                tiling = self.alone.cheaper(scope, node, tiling, lanes, cuts, self.objective)
            self.solved[key] = tiling
            self.cuts |= {} if tiling.on_lanes else cuts
        return self.solved[key]

    def pair(self, scope: Scope, pair: Pair) -> Tiling:
        """The tiling of both gradients of a layer; raises GroupDoesNotFit."""
        gemm = pair_gemm(scope, pair)
        tiling = pinned_tiling(gemm, pair.dx.name, scope.machine, self.pinned)
        if tiling is not None:
            return tiling
        key = signature(gemm)
        if key not in self.solved:
            self.solved[key] = pair_tiling(gemm, scope.machine, pair.nodes[0].name)
        return self.solved[key]

    def cut(
        self, gemm: Gemm, tiling: Tiling, machine: Machine, flows: Sequence[Flow]
    ) -> tuple[Tiling, dict[tuple[Triple, str], Cut]]:
        """The tiling with the best of the flows, and the cuts of its products."""
        if not self.exact and tiling.flow == FLOWS[0].name:
            keys = [(sizes, tiling.flow) for sizes in tile_products(gemm, tiling)]
            by_hand = {key: self.pinned.cuts[key] for key in keys if key in self.pinned.cuts}
            return tiling, {**cuts_by_rule(gemm, tiling, machine), **by_hand}
        cuts: dict[tuple[Triple, str], Cut] = {}
        by_hand = self.pinned.cuts
        return choose_cuts(gemm, tiling, machine, cuts, flows, by_hand, self.objective), cuts


def _way(scope: Scope, gemm: Gemm) -> tuple[object, ...]:
    """What decides, beside the signature, how long a kernel with a tiling takes."""
    ways = (scope.margins.get(t) for t in gemm.tensors.values())
    return (*ways, gemm.out in scope.sums)


def _gemms(plan: GroupPlan) -> Iterator[tuple[str, int, Turn, Node]]:
    """The array nodes of a group as they run: what their tiling is called, samples, rows, node."""
    for size in plan.sizes:
        for turn in plan.turns:
            for n in plan.nodes:
                if n.op in GEMMS:
                    yield tiling_key(n, plan, size, turn), size, turn, n


def _work(
    plan: GroupPlan,
    scopes: dict[int, Scope],
    cuts: dict[tuple[Triple, str], Cut],
    tilings: dict[str, Tiling],
) -> Counter[tuple[Triple, Cut]]:
    """The products of all iterations of a group, each with its cut, and how often it comes."""
    found = Counter[tuple[Triple, Cut]]()
    for key, size, turn, node in _gemms(plan):
        often = turn.count * sum(
            r.count * [n for _, n in plan.parts(r.part.size)].count(size) for r in plan.runs
        )
        if tilings[key].on_lanes:
            continue
        gemm = gemm_of(turn.at(scopes[size], node), turn.node(node))
        for sizes, count in tile_products(gemm, tilings[key]).items():
            found[sizes, cuts[sizes, tilings[key].flow]] += often * count
    return found


def _map_group(context: Scope, plan: GroupPlan, search: _Search) -> tuple[dict[str, Tiling], int]:
    """Tilings for the nodes of a group and the room they were given."""
    numbers = dict.fromkeys((n.name for n in plan.nodes), 0)
    scopes = {size: group_scope(context, plan, size) for size in plan.sizes}
    rooms = [int(plan.budget * _LESS**attempt) for attempt in range(_ATTEMPTS)]
    if plan.name in search.pinned.rooms:
        rooms = [search.pinned.rooms[plan.name]]
    last, machine = None, context.machine
    for room in rooms:
        try:
            tilings = {
                key: search.tiling(
                    turn.at(with_guests(scopes[size], plan, n.name), n),
                    turn.node(n),
                    room,
                    key,
                    grouped=True,
                )
                for key, size, turn, n in _gemms(plan)
            }
            # one kernel has one set of accumulators
            offered = sorted({1, *(t.pieces for t in tilings.values())})
            pieces = offered[-1]
            if offered[1:] and search.pinned.tilings.keys().isdisjoint(tilings):
                pieces = fastest_pieces(_work(plan, scopes, search.cuts, tilings), machine, offered)
            tilings = {
                name: t if t.on_lanes else replace(t, pieces=pieces) for name, t in tilings.items()
            }
            mapping = Mapping(context.machine.name, tilings, {}, search.cuts)
            group_kernel(context, mapping, replace(plan, budget=room), numbers)
            return tilings, room
        except (CodegenError, MappingError) as error:
            last = error
    raise GroupDoesNotFit(
        plan.name,
        f"the group of '{plan.name}' does not fit the buffer with any tiles; use a smaller "
        f"sub-batch or keep less ({last})",
    )
