"""The array's part of a mapping: how each product that a GEMM's tiles consist of is cut.

A tile at the edge is smaller, and a strided gradient has several stride phases: one GEMM is many
products, of a few sizes.  Each size is solved once for a machine (array_search.py); the flow is
chosen for the GEMM as a whole, by the objective: cycles of the array with its waits for
accumulators, bytes through the local buffers, or the energy of both; the pieces of its waves by
executing them (array_time.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import product as pairs
from math import prod

from ccnn.compiler.codegen.emit import Region, segments
from ccnn.compiler.codegen.gemm import Gemm
from ccnn.compiler.codegen.nest import Position
from ccnn.compiler.codegen.place import Held
from ccnn.compiler.codegen.scope import dense
from ccnn.compiler.cut import Cut, Flow, Triple
from ccnn.compiler.mapper.array import ArrayMapping, Figure, Product, Rules, flows
from ccnn.compiler.mapper.array_cost import piped_cycles
from ccnn.compiler.mapper.array_energy import price
from ccnn.compiler.mapper.array_search import map_product
from ccnn.compiler.mapper.array_time import executed_cycles
from ccnn.compiler.mapping import Tiling
from ccnn.targets.machine import Machine
from ccnn.targets.program import DTYPE_BYTES, ZERO

PIECES = (1, 2, 4)
"""Pieces that waves may go through the array in."""
Cuts = MutableMapping[tuple[Triple, str], Cut]


def tile_products(gemm: Gemm, tiling: Tiling) -> Counter[Triple]:
    """M x N x K of the products that a GEMM's tiles consist of, and how often each comes."""
    tile, found = dict(tiling.tiles), Counter[Triple]()
    shapes = gemm.tile_shapes(tile)
    place = Region("", gemm.accum, 0)
    moving, stationary, result = (
        Held(place, dense(shapes[name])) for name in ("moving", "stationary", "result")
    )
    names = list(gemm.levels)
    for parts in pairs(*(segments(gemm.levels[n].total, tile[n]) for n in names)):
        position: Position = {n: (ZERO, p.size) for n, p in zip(names, parts, strict=True)}
        count = prod(p.count for p in parts) * gemm.repeats(position)
        for _, _, _, sizes, _ in gemm.products(position, (moving, stationary, result), ZERO):
            found[sizes] += count
    return found


def usable_flows(gemm: Gemm, tiling: Tiling, machine: Machine, grouped: bool) -> Sequence[Flow]:
    """The flows that code can be written for: a bias goes with the columns of the result, and in
    a group, where nodes share the pipes, only weights stay."""
    drains_bias = bool(gemm.bias) and not gemm.converts(dict(tiling.tiles))
    return [
        flow
        for flow in flows(machine)
        if not (drains_bias and flow.width == 0) and not (grouped and flow.dataflow != "ws")
    ]


def choose_cuts(
    gemm: Gemm,
    tiling: Tiling,
    machine: Machine,
    cuts: Cuts,
    usable: Sequence[Flow],
    pinned: Mapping[tuple[Triple, str], Cut] | None = None,
    objective: str = "time",
) -> Tiling:
    """The tiling with the flow that is best by the objective; its products are added to `cuts`.

    Cuts that are `pinned` are taken whatever they cost.  The lanes need none.
    """
    if gemm.lanes:
        return tiling
    products = tile_products(gemm, tiling)
    word = DTYPE_BYTES[gemm.dtypes[gemm.tensors["moving"]]]
    sums = DTYPE_BYTES[gemm.accum]
    rules = Rules(ideal_memory=True, word_bytes=word, sum_bytes=sums, objective=objective)
    offers = []
    for place, flow in enumerate(usable):
        maps = {sizes: cut_of(sizes, machine, rules, flow) for sizes in products}
        most = PIECES if flow.dataflow == "ws" else PIECES[:1]
        fits = [pieces for pieces in most if machine.acc_rows % pieces == 0]
        worth = min(_total(products, maps, machine, rules, pieces) for pieces in fits)
        offers.append((*worth, place, maps, fits))
    *_, place, maps, fits = min(offers, key=lambda offer: offer[:3])
    chosen, pieces = usable[place].name, _pieces(products, maps, machine, fits)
    chosen_cuts = {(sizes, chosen): mapping.cut for sizes, mapping in maps.items()}
    cuts.update(chosen_cuts)
    cuts.update({key: cut for key, cut in (pinned or {}).items() if key in chosen_cuts})
    return replace(tiling, flow=chosen, pieces=pieces)


def _waited(
    products: Mapping[Triple, int], maps: Mapping[Triple, ArrayMapping], machine: Machine,
    pieces: int,
) -> int:  # fmt: skip
    """Cycles of all products in a steady state."""
    return sum(n * piped_cycles(maps[s].cut, machine, pieces) for s, n in products.items())


def _pieces(
    products: Mapping[Triple, int], maps: Mapping[Triple, ArrayMapping], machine: Machine,
    fits: Sequence[int],
) -> int:  # fmt: skip
    """The pieces that take fewest cycles when executed; more than one only where they can save a
    wait for accumulators at all."""
    alone = _waited(products, maps, machine, 1)
    if all(_waited(products, maps, machine, pieces) >= alone for pieces in fits):
        return 1
    work = {(sizes, maps[sizes].cut): count for sizes, count in products.items()}
    return fastest_pieces(work, machine, fits)


def fastest_pieces(
    work: Mapping[tuple[Triple, Cut], int], machine: Machine, offered: Iterable[int]
) -> int:
    """Of the offered pieces those in which all the products take fewest cycles, feeds and drains
    included; the fewest of equals."""

    def executed(pieces: int) -> int:
        total = 0
        for (sizes, cut), count in work.items():
            first, further = executed_cycles(sizes, cut, machine, pieces)
            total += first + (count - 1) * further
        return total

    return min(offered, key=lambda pieces: (executed(pieces), pieces))


@lru_cache(maxsize=65536)
def cut_of(sizes: Triple, machine: Machine, rules: Rules, flow: Flow) -> ArrayMapping:
    """The best mapping of a product in one flow: the exact one, or the rule's where waiting for
    accumulators makes that one better."""

    def rank(mapping: ArrayMapping) -> tuple[Figure, ...]:
        return _judge(mapping, machine, rules)

    exact = map_product(Product(*sizes), machine, rules, flow=flow, rank=rank)
    by_rule = map_product(Product(*sizes), machine, rules, "heuristic")
    return min(exact, by_rule, key=rank) if by_rule.cut.flow == flow else exact


def _total(
    products: Mapping[Triple, int],
    maps: Mapping[Triple, ArrayMapping],
    machine: Machine,
    rules: Rules,
    pieces: int,
) -> tuple[Figure, ...]:
    """What all products cost by the objective, and what decides between equals."""
    judged = [_judge(maps[s], machine, rules, pieces) for s in products]
    return tuple(
        sum(n * each for n, each in zip(products.values(), column, strict=True))
        for column in zip(*judged, strict=True)
    )


def _judge(
    mapping: ArrayMapping, machine: Machine, rules: Rules, pieces: int = 1
) -> tuple[Figure, Figure]:
    """What a product costs by the objective, and what decides between equals."""
    cycles, moved = piped_cycles(mapping.cut, machine, pieces), mapping.buffer_bytes
    if rules.objective == "traffic":
        return moved, cycles
    if rules.objective == "time":
        return cycles, moved
    waits = cycles - mapping.cycles
    return mapping.value + price(machine, "static_cycle") * waits, cycles


def cuts_by_rule(gemm: Gemm, tiling: Tiling, machine: Machine) -> Cuts:
    """FlexSA's cuts, M or K split over the arrays; of one array they need not be written down."""
    if machine.arrays == 1 or gemm.lanes:
        return {}
    rules = Rules(ideal_memory=True)
    found = {
        s: map_product(Product(*s), machine, rules, "heuristic")
        for s in tile_products(gemm, tiling)
    }
    return {(sizes, tiling.flow): mapping.cut for sizes, mapping in found.items()}
