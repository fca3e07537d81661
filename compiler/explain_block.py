"""What else a kernel could have been: other tilings of a GEMM, and a group written once more."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

from ccnn.compiler.codegen import gemm_of, group_kernel, make_context, pair_kernel, plan_groups
from ccnn.compiler.codegen.bands import Turn
from ccnn.compiler.codegen.gemm import Gemm
from ccnn.compiler.codegen.group import group_scope, tiling_key, with_guests
from ccnn.compiler.codegen.pair import pair_gemm
from ccnn.compiler.codegen.plan import GroupPlan
from ccnn.compiler.codegen.scope import Scope
from ccnn.compiler.driver import Compilation
from ccnn.compiler.mapper import map_group
from ccnn.compiler.mapper.cuts import choose_cuts, cuts_by_rule, usable_flows
from ccnn.compiler.mapper.pairs import as_paired, pair_tiling
from ccnn.compiler.mapper.price import fitting, price, traffic, work
from ccnn.compiler.mapper.rule import choose_tiling, make_grid
from ccnn.compiler.mapping import Mapping, Tiling
from ccnn.passes.graph import Node
from ccnn.passes.interleave_gradients import Pair, pair_of
from ccnn.targets.machine import Machine
from ccnn.targets.program import Kernel


@dataclass(frozen=True)
class Block:
    """A group of a compilation on a machine, ready to be mapped and written anew."""

    context: Scope
    plan: GroupPlan
    numbers: dict[str, int]
    """Node to its place in the program's table."""
    exact: bool
    objective: str

    @classmethod
    def of(cls, c: Compilation, kernel: Kernel, machine: Machine) -> Block | PairBlock | None:
        """The group that a kernel is; None for the kernel of a single node."""
        numbers = {ref.name: n for n, ref in enumerate(c.program.nodes)}
        group = next(
            (
                g
                for g in c.lowered.groups
                if next(n for n in g.nodes if n in numbers) == kernel.name
            ),
            None,
        )
        if group is None:
            return None
        graph = replace(c.lowered, groups=(group,))
        context = make_context(graph, machine, c.options.dtype)
        if group.interleaved:
            return PairBlock(context, pair_of(graph, group), numbers)
        return cls(
            context,
            plan_groups(context)[0],
            numbers,
            c.options.mapper == "exact",
            c.options.objective,
        )

    def mapped(self, mapper: str) -> Mapping:
        """The best mapping of the group; raises MappingError."""
        return map_group(self.context, self.plan, mapper, self.objective)

    def write(self, mapping: Mapping) -> Kernel:
        """The group's kernel; raises CodegenError when it does not fit."""
        room = mapping.rooms.get(self.plan.name, self.plan.budget)
        plan = replace(self.plan, budget=room)
        return group_kernel(self.context, mapping, plan, self.numbers)

    def others(
        self, mapping: Mapping, node: Node, chosen: Tiling, count: int
    ) -> Iterator[tuple[Tiling, Callable[[], Kernel]]]:
        """Tilings of one node next in price in the room it has in the group, and what writes the
        group with each, all other nodes as they are."""
        samples, turn = self.plan.sizes[0], self.plan.turns[0]
        gemm = self._gemm(node, samples, turn, chosen.on_lanes)
        for offered in next_tilings(gemm, self._roomy(mapping), chosen, count):
            tiling, changed = self._with(mapping, node, (gemm, samples, turn), offered)
            yield tiling, partial(self.write, changed)

    def elsewhere(
        self, mapping: Mapping, node: Node, chosen: Tiling
    ) -> tuple[Tiling, Callable[[], Kernel]]:
        """The tiling of one node on the unit that it was not given, and what writes the group with
        it, all other nodes as they are."""
        found = chosen
        for samples in self.plan.sizes:
            for turn in self.plan.turns:
                gemm = self._gemm(node, samples, turn, not chosen.on_lanes)
                offered = choose_tiling(gemm, self._roomy(mapping))
                tiling, mapping = self._with(mapping, node, (gemm, samples, turn), offered)
                found = tiling if found is chosen else found
        return found, partial(self.write, mapping)

    def _roomy(self, mapping: Mapping) -> Machine:
        """The machine with the buffer that the tiles of a node may take."""
        room = mapping.rooms.get(self.plan.name, self.plan.budget)
        return replace(self.context.machine, gbuf_bytes=room)

    def _gemm(self, node: Node, samples: int, turn: Turn, lanes: bool) -> Gemm:
        scope = with_guests(group_scope(self.context, self.plan, samples), self.plan, node.name)
        return gemm_of(turn.at(scope, node), turn.node(node), lanes)

    def _with(
        self, mapping: Mapping, node: Node, where: tuple[Gemm, int, Turn], offered: Tiling
    ) -> tuple[Tiling, Mapping]:
        """A tiling of a node with cuts, and the mapping with it instead of the node's own."""
        tiling, cuts, machine = offered, dict(mapping.cuts), self.context.machine
        gemm, samples, turn = where
        if not self.exact:
            cuts |= cuts_by_rule(gemm, tiling, machine)
        else:
            flows = usable_flows(gemm, tiling, machine, grouped=True)
            tiling = choose_cuts(gemm, tiling, machine, cuts, flows, None, self.objective)
        if not tiling.on_lanes:  # a kernel has one set of accumulators
            tiling = replace(tiling, pieces=self._pieces(mapping))
        key = tiling_key(node, self.plan, samples, turn)
        return tiling, replace(mapping, tilings={**mapping.tilings, key: tiling}, cuts=cuts)

    def _pieces(self, mapping: Mapping) -> int:
        keys = {
            tiling_key(node, self.plan, samples, turn)
            for node in self.plan.nodes
            for samples in self.plan.sizes
            for turn in self.plan.turns
        }
        return max(mapping.tilings[key].pieces for key in keys & mapping.tilings.keys())


@dataclass(frozen=True)
class PairBlock:
    """Both gradients of a layer that the array interleaves, on a machine."""

    context: Scope
    pair: Pair
    numbers: dict[str, int]

    def mapped(self, _: str) -> Mapping:
        """The best tiling of the two; raises MappingError."""
        gemm, name = pair_gemm(self.context, self.pair), self.pair.nodes[0].name
        tiling = pair_tiling(gemm, self.context.machine, name)
        return Mapping(self.context.machine.name, {self.pair.dx.name: tiling})

    def write(self, mapping: Mapping) -> Kernel:
        """The kernel; raises CodegenError when it does not fit."""
        return pair_kernel(self.context, mapping, self.pair, self.numbers)

    def others(
        self, mapping: Mapping, node: Node, chosen: Tiling, count: int
    ) -> Iterator[tuple[Tiling, Callable[[], Kernel]]]:
        """Tilings next in price, and what writes the kernel with each."""
        gemm, machine = pair_gemm(self.context, self.pair), as_paired(self.context.machine)
        for tiling in next_tilings(gemm, machine, chosen, count):
            tilings = {**mapping.tilings, node.name: tiling}
            yield tiling, partial(self.write, replace(mapping, tilings=tilings))


def next_tilings(gemm: Gemm, machine: Machine, chosen: Tiling, count: int) -> list[Tiling]:
    """The cheapest tilings of the mapper's grid that differ from the chosen one in tile sizes."""
    machine = machine.as_one
    tables, index = make_grid(gemm, machine)
    index, _ = fitting(tables, machine, index)
    done = work(tables, machine, index)
    offers: list[tuple[float, Tiling]] = []
    for order in gemm.orders:
        moved = traffic(tables, index, done, order)
        for depth in (2, 1):
            priced = price(tables, machine, done, moved, depth)
            fits = (priced.need <= machine.gbuf_bytes).nonzero()[0]
            for at in sorted(fits, key=lambda i: float(priced.cost[i]))[: count + 1]:
                sizes = tuple((n, int(tables.levels[n].sizes[index[n][at]])) for n in order)
                tiling = Tiling(order, sizes, depth, int(priced.dram[at]), 0, gemm.flow)
                offers.append((float(priced.cost[at]), tiling))
    offers.sort(key=lambda offer: (offer[0], str(offer[1])))
    kept: dict[tuple[tuple[str, int], ...], Tiling] = {}
    for _, tiling in offers:
        key = tuple(sorted(tiling.tiles))
        if key != tuple(sorted(chosen.tiles)):
            kept.setdefault(key, tiling)
    return list(kept.values())[:count]
