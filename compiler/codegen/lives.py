"""How long regions live: where there is room so long that loads and engines overlap."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from math import prod

from ccnn.compiler.codegen.bands import Turn
from ccnn.compiler.codegen.guests import Guest, gap
from ccnn.compiler.codegen.packing import Rectangle, pack, top
from ccnn.compiler.codegen.scope import Margin, Scope, with_margin
from ccnn.passes.graph import Node
from ccnn.passes.steps import ARRAY_OPS, MOST_MARGIN


def inherited(
    context: Scope,
    nodes: Sequence[Node],
    names: Mapping[str, str],
    margins: Mapping[str, Margin],
    fixed: Collection[str],
) -> dict[str, Margin]:
    """Margins for what a map reads last, like those of its result, which then may lie in its place.

    names: tensors to regions; fixed: regions that keep to their shape.
    """
    graph, found = context.graph, dict(margins)
    touched: dict[str, list[int]] = {}
    planes: dict[str, set[tuple[int, ...]]] = {}
    for place, node in enumerate(nodes):
        for t in (*node.inputs, *node.outputs):
            if t in names:
                touched.setdefault(names[t], []).append(place)
                planes.setdefault(names[t], set()).add(graph[t].shape[-2:])
    for place, node in reversed(list(enumerate(nodes))):
        made, *others = node.outputs
        out = names.get(made, "")
        if node.op != "map" or others or out not in found:
            continue
        shape = graph[made].shape
        ends = [
            names[t]
            for t in node.inputs
            if t in names and graph[t].shape == shape and touched[names[t]][-1] == place
            and context.dtypes[names[t]] == context.dtypes[out]
        ]  # fmt: skip
        larger = prod(with_margin(shape, found[out])) > MOST_MARGIN * prod(shape)
        if larger or touched[out][0] < place or any(found.get(r) == found[out] for r in ends):
            continue
        for region in ends:
            maker = graph.producer.get(region)
            near = maker is not None and maker.phase == node.phase
            alike = len(planes[region]) == 1 and len(shape) > 3
            if near and alike and region not in found and region not in fixed:
                found[region] = found[out]
                break
    return found


def in_place(
    context: Scope,
    nodes: Sequence[Node],
    names: Mapping[str, str],
    turns: Sequence[Turn],
    rectangles: Sequence[Rectangle],
) -> dict[str, str]:
    """Regions that a map writes over an operand that nobody reads afterwards, to the region that
    such a row of maps begins with."""
    known = {r.name: r for r in rectangles}
    shared: dict[str, str] = {}
    given: set[str] = set()

    def same(tensor: str, out: str) -> bool:
        a, b = names[tensor], names[out]
        graph, dtypes = context.graph, context.dtypes
        return (
            graph[tensor].shape == graph[out].shape
            and dtypes[a] == dtypes[b]
            and known[a].size == known[b].size
            and all(t.margins.get(a) == t.margins.get(b) for t in turns)
            and all(t.needs.get(tensor) == t.needs.get(out) for t in turns)
        )

    for place, node in enumerate(nodes):
        out = node.outputs[0]
        if node.op != "map" or len(node.outputs) > 1 or out not in names:
            continue
        made = known[names[out]]
        for tensor in node.inputs:
            read = known[names[tensor]] if tensor in names else None
            if read is None or read.end != place + 1 or read.name in given:
                continue
            if made.begin == place and same(tensor, out):
                shared[made.name] = shared.get(read.name, read.name)
                given.add(read.name)
                break
    return shared


def joined(rectangles: Sequence[Rectangle], shared: Mapping[str, str]) -> tuple[Rectangle, ...]:
    """One rectangle for each row of regions that share an address."""
    found: dict[str, Rectangle] = {}
    for r in rectangles:
        name = shared.get(r.name, r.name)
        old = found.get(name, r)
        begin, end = min(old.begin, r.begin), max(old.end, r.end)
        found[name] = Rectangle(name, begin, end, r.size)
    return tuple(found.values())


def settled(
    nodes: Sequence[Node], root: Mapping[str, str], resident: Collection[str]
) -> tuple[Node, ...]:
    """The nodes with each weight gradient behind the vector work of its layer that reads one of its
    operands on chip, too: what frees room meanwhile is not kept from loads by those of its sums."""
    order = list(nodes)
    for node in nodes:
        made = [n for o in node.outputs for n in nodes if o in n.inputs]
        if node.op not in ARRAY_OPS or not all(n.attr("fused") for n in made):
            continue
        mine = {root[i] for i in node.inputs if i} & set(resident)
        first = order.index(node)
        behind = first
        for k, other in enumerate(order[first + 1 :], first + 1):
            if other.op in ARRAY_OPS:
                break
            if other not in made and mine & {root[i] for i in other.inputs if i}:
                behind = k
        if behind > first:
            moved = [node, *dict.fromkeys(made)]
            rest = [n for n in order[: behind + 1] if n not in moved]
            order = [*rest, *moved, *(n for n in order[behind + 1 :] if n not in moved)]
    return tuple(order)


def beside(nodes: Sequence[Node], place: int, lasting: bool) -> set[str]:
    """The nodes whose operands are fetched in front of a node's own: itself, and where its own
    loads are `lasting` as long as it does, the vector work up to the next array node."""
    ends = (k for k in range(place + 1, len(nodes)) if nodes[k].op in ARRAY_OPS)
    end = next(ends, len(nodes)) if lasting else place + 1
    return {n.name for n in nodes[place:end]}


_AHEAD = 2
"""How many array nodes before their first use regions are fetched, where there is room."""

_SHARE, _SHARE_AHEAD = 0.25, 0.6
"""Of the room left by the regions, what longer lives may take: usually, and in groups that fetch
ahead."""


def room_ahead(gbuf_bytes: int, placed: Sequence[Rectangle], ahead: bool) -> int:
    """How high regions may reach when they live longer than they must."""
    height = top(placed)
    return height + int((gbuf_bytes - height) * (_SHARE_AHEAD if ahead else _SHARE))


def lengthened(
    limit: int,
    nodes: Sequence[Node],
    names: Mapping[str, str],
    placed: tuple[Rectangle, ...],
    guests: Sequence[Guest] = (),
    ahead: bool = False,
) -> tuple[dict[int, tuple[tuple[str, str], ...]], tuple[Rectangle, ...]]:
    """When each region that is fetched is, and all rectangles with longer lives, as far as they
    fit below the limit.

    A load that begins while the array still works on the nodes before hides behind them.  What the
    array reads last is not written over before its next node, so that the vector unit need
    not wait for it.
    """
    readers = _first_readers(nodes, names) | {g.region: (g.place, g.tensor) for g in guests}
    height = top(placed)
    early = {name: place for name, (place, _) in readers.items()}
    between = [height + (limit - height) * k // 4 for k in (3, 2, 1)] if ahead else []
    for most in (limit, *between, height, height * 9 // 10, height * 8 // 10):
        sooner, longer = _lives(nodes, placed, early, most, ahead)
        longer = pack(longer)
        if top(longer) <= limit:
            early, placed = sooner, longer
            break
    early, placed = _stretched(nodes, placed, early, top(placed))
    fetches: dict[int, tuple[tuple[str, str], ...]] = {}
    latest = 0  # loads go in order: what is needed later must not stand in front
    for name, (place, tensor) in sorted(readers.items(), key=lambda item: item[1][0]):
        latest = max(latest, early[name])
        fetches[latest] = (*fetches.get(latest, ()), (tensor, nodes[place].name))
    return fetches, placed


def _stretched(
    nodes: Sequence[Node], placed: tuple[Rectangle, ...], fetched: Mapping[str, int], limit: int
) -> tuple[dict[str, int], tuple[Rectangle, ...]]:
    """Where regions are fetched, and lives made longer one by one, the largest first, each as long
    as a gap below the limit allows while all others stay where they are.

    Lives may begin in the iteration before (below 0) or end in the next: loads then run ahead.
    """
    count = len(nodes)
    array = [i for i, n in enumerate(nodes) if n.op in ARRAY_OPS]
    around = [i + turn for turn in (-count, 0, count) for i in array]
    early, found = dict(fetched), {r.name: r for r in placed}

    def move(r: Rectangle, begin: int, end: int) -> bool:
        wanted = replace(r, begin=begin, end=end)
        others = [
            replace(o, begin=o.begin + turn, end=o.end + turn)
            for o in found.values()
            for turn in (-count, 0, count)
            if o.name != r.name and o.begin + turn < end and begin < o.end + turn
        ]
        address = gap(wanted, others)
        if address + r.size <= limit:
            found[r.name] = replace(wanted, address=address)
        return address + r.size <= limit

    for r in sorted(placed, key=lambda r: (-r.size, r.begin, r.name)):
        if r.name in early:
            for at in [i for i in around if i < early[r.name]][-_AHEAD:]:
                if r.end - min(at, r.begin) <= count and move(r, min(at, r.begin), r.end):
                    early[r.name] = at if at >= 0 else early[r.name]
                    break
        r = found[r.name]
        if r.end <= count and nodes[r.end - 1].op in ARRAY_OPS:
            after = next((i for i in around if i >= r.end), r.end)
            if after - r.begin <= count:
                move(r, r.begin, after)
    lives = (replace(r, begin=max(r.begin, 0), end=min(r.end, count)) for r in found.values())
    return early, tuple(lives)


def _lives(
    nodes: Sequence[Node],
    placed: Sequence[Rectangle],
    fetched: Mapping[str, int],
    most: int,
    ahead: bool,
) -> tuple[dict[str, int], tuple[Rectangle, ...]]:
    """Where regions are fetched and the longer lives of all, with at most so many bytes alive.

    With `ahead`, what is needed first has the first choice: loads go in order, so room for what
    comes behind it would be taken in vain.
    """
    array = [i for i, n in enumerate(nodes) if n.op in ARRAY_OPS]
    live = [sum(r.size for r in placed if r.begin <= t < r.end) for t in range(len(nodes))]

    def take(size: int, begin: int, end: int) -> bool:
        fits = all(live[t] + size <= most for t in range(begin, end))
        if fits:
            for t in range(begin, end):
                live[t] += size
        return fits

    early, longer, latest = dict(fetched), [], 0
    by_need = sorted(placed, key=lambda r: fetched.get(r.name, len(nodes)))
    for r in by_need if ahead else placed:
        begin, end = r.begin, r.end
        if r.name in fetched:
            for at in [i for i in array if latest <= i < fetched[r.name]][-_AHEAD:]:
                if at >= begin or take(r.size, at, begin):
                    early[r.name], begin = at, min(at, begin)
                    break
            latest = max(latest, early[r.name]) if ahead else 0
        if nodes[min(end, len(nodes)) - 1].op in ARRAY_OPS:
            after = next((i for i in array if i >= end), len(nodes))
            if take(r.size, end, after):
                end = after
        longer.append(replace(r, begin=begin, end=end, address=0))
    return early, tuple(longer)


def _first_readers(nodes: Sequence[Node], names: Mapping[str, str]) -> dict[str, tuple[int, str]]:
    """Regions that nothing in the group fills, to the first node that reads them (its place) and
    the tensor it reads."""
    made: set[str] = set()
    found: dict[str, tuple[int, str]] = {}
    for place, node in enumerate(nodes):
        if node.op == "reshape":
            continue
        for tensor in node.inputs:
            if tensor in names and names[tensor] not in made:
                found.setdefault(names[tensor], (place, tensor))
        made |= {names[o] for o in node.outputs if o in names}
    return found
