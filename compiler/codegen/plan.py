"""What a group does with the global buffer: iterations, regions and their addresses.

A region is as large as its tensor is in the largest iteration, with the zeros that convolutions
read around it.  Regions whose lives (from the first node of the group that touches them to the
last) do not meet may share addresses.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

from ccnn.compiler.codegen.bands import Turn, bands_of, check_bands, turns_of
from ccnn.compiler.codegen.convolution import Conv, ConvDw, ConvDx
from ccnn.compiler.codegen.emit import CodegenError, Region
from ccnn.compiler.codegen.guests import Guest, welcomed
from ccnn.compiler.codegen.halves import half_of, may_halve, stage_ends, stages_of, to_ends
from ccnn.compiler.codegen.hand_over import NO_PASSAGE, Passage
from ccnn.compiler.codegen.iterations import Run, runs_of, with_left
from ccnn.compiler.codegen.lives import (
    in_place,
    inherited,
    joined,
    lengthened,
    room_ahead,
    settled,
)
from ccnn.compiler.codegen.packing import ALIGNMENT, Rectangle, pack, top
from ccnn.compiler.codegen.scope import Margin, Scope, with_margin
from ccnn.compiler.mapping import GroupDoesNotFit
from ccnn.passes.batch_axis import BatchAxis
from ccnn.passes.graph import Graph, Group, Node, Tensor
from ccnn.passes.row_bands import banded
from ccnn.targets.program import DTYPE_BYTES, ZERO, Affine

TENTHS_FOR_A_NODE = 3
"""Of the room that a group's regions leave, the part that the tiles of one node may take: nodes
share pipes only where engines and depths agree, so several sets stand side by side."""


@dataclass(frozen=True)
class GroupPlan:
    """Everything about a group that both the mapper and the code generator need."""

    group: Group
    nodes: tuple[Node, ...]
    axis: BatchAxis
    runs: tuple[Run, ...]
    names: Mapping[str, str]
    """Tensors that stay in the buffer to the tensor that their region is called after: the one
    whose bytes they show, or in whose place a map wrote them."""
    turns: tuple[Turn, ...]
    """The bands of rows that an image is cut into; whole images are one."""
    fetches: Mapping[int, tuple[tuple[str, str], ...]]
    """Place of a node to what is fetched in front of it: tensors and the nodes that need them."""
    rectangles: tuple[Rectangle, ...]
    guests: tuple[Guest, ...]
    """Operands that lie in the buffer for one node only, fetched for it in each iteration."""
    sums: tuple[str, ...]
    """Results over the batch that gather in the buffer."""
    partial: tuple[str, ...]
    """Results over the batch that gather in DRAM."""
    published: frozenset[str]
    """Tensors made and kept in the group that somebody outside needs."""
    roots: Mapping[str, str]
    """Tensors of the group to the names of their bytes in DRAM."""
    budget: int
    """Bytes for the tiles of one node, to begin with; the mapper lowers it until all fit."""
    halves: bool = False
    """The samples of an iteration go in two parts, stage by stage."""
    passage: Passage = NO_PASSAGE
    """What the group finds in the buffer, and what it leaves there."""

    def parts(self, samples: int) -> list[tuple[int, int]]:
        """What an iteration of so many samples is done in: first sample and samples of each."""
        if not self.halves:
            return [(0, samples)]
        first = half_of(samples, self.axis.grain)
        return [(0, first), (first, samples - first)]

    @property
    def sizes(self) -> tuple[int, ...]:
        """How many samples nodes work on at a time; first those of the first iteration."""
        return tuple(dict.fromkeys(n for r in self.runs for _, n in self.parts(r.part.size)))

    def first(self, passed: Affine, samples: int) -> Affine:
        """The first sample of an iteration, when so many have passed before."""
        if not self.group.backwards:
            return passed
        return passed * -1 + (self.axis.batch - samples)

    @property
    def stages(self) -> list[list[int]]:
        """Places of nodes that each half goes through at a stretch."""
        return stages_of(self.nodes, self.halves)

    @property
    def name(self) -> str:
        """The group is called by its first node that is code."""
        return next(n.name for n in self.nodes if n.op != "reshape")

    @property
    def above(self) -> Mapping[str, str]:
        """Tensors of which rows are carried from band to band, to the region that holds them."""
        return _above(self.turns)

    @property
    def height(self) -> int:
        """Bytes that all regions take."""
        return top(self.rectangles)

    def local(self, graph: Graph, samples: int) -> Graph:
        """The graph with the shapes that tensors have in an iteration of so many samples."""
        tensors = dict(graph.tensors)
        for node in self.nodes:
            for name in (*node.inputs, *node.outputs):
                if name in self.axis.rows:
                    tensors[name] = _local(graph[name], self.axis, samples)
        return replace(graph, tensors=tensors)


def _local(tensor: Tensor, axis: BatchAxis, samples: int) -> Tensor:
    rows = axis.rows.get(tensor.name)
    if rows is None:
        return tensor
    return replace(tensor, shape=(int(rows * samples), *tensor.shape[1:]))


def plan_group(
    context: Scope, group: Group, axis: BatchAxis, root: Mapping[str, str], passage: Passage
) -> GroupPlan:
    """Lay out a group; raises CodegenError when its nodes cannot run on sub-batches."""
    graph = context.graph
    by_name = {n.name: n for n in graph.nodes}
    nodes = tuple(by_name[n] for n in group.nodes)
    samples = group.sub_batch or axis.batch
    runs = runs_of(axis.batch, samples, group, passage)
    bands = bands_of(graph, group, nodes)
    turns = turns_of(bands)
    several = sum(run.count for run in runs) > 1 or len(turns) > 1
    if several:
        _check(graph, group, nodes, axis)
    gathered = [o for n in nodes if several and _gathers(n, axis) for o in n.outputs]
    # small sums and moments always stay; large ones only where the group says so
    large = [o for o in gathered if graph.producer[o].op in ("conv_dw", "matmul")]
    sums = [o for o in gathered if o in group.kept or o not in large]
    wanted = {root[t] for t in (*group.resident, *group.kept) if t not in gathered}
    # a band's rows of what all samples share are fetched anew
    wanted -= {root[t] for t in bands.scale if t not in axis.rows} if bands else set()
    touched = dict.fromkeys(t for n in nodes for t in (*n.inputs, *n.outputs) if t)
    turns = tuple(
        replace(turn, margins=_margins(context, nodes, turn, touched, root, wanted))
        for turn in turns
    )
    wanted -= {
        root[n.inputs[0]] for n in nodes if any(_too_wide(context, n, turn, root) for turn in turns)
    }
    nodes = settled(nodes, root, wanted) if group.ahead and not group.halves else nodes
    apart = {*gathered, *(o for n in nodes if n.attr("fused") for o in n.outputs)}
    names = {t: root[t] for t in touched if root[t] in wanted and t not in apart}
    turns = _inherited(context, nodes, names, turns, group, root)
    check_bands(nodes, turns, names)
    published = _published(graph, nodes, names, root, passage.whole(axis.batch))
    halves = group.halves and may_halve([r.part.size for r in runs], turns, axis)
    ends = stage_ends(nodes, halves)
    rectangles = _rectangles(context, nodes, axis, samples, names, turns, group, root, halves)
    rectangles += _held(context, nodes, sums)
    shared = in_place(context, nodes, names, turns, rectangles)
    placed = pack(to_ends(joined(rectangles, shared), ends))
    operands = _operands(context, nodes, axis, samples, names, turns, root, ends)
    guests, placed = welcomed(operands, placed, passage.room)
    limit = room_ahead(passage.room, placed, group.ahead)
    fetches, placed = lengthened(limit, nodes, names, placed, guests, group.ahead)
    fetches = with_left(fetches, nodes, names, root, passage)
    names = {t: shared.get(region, region) for t, region in names.items()}
    budget = _budget(nodes, passage.room, top(placed))
    return GroupPlan(
        group,
        nodes,
        axis,
        runs,
        names,
        tuple(
            replace(t, margins={k: m for k, m in t.margins.items() if k in wanted}) for t in turns
        ),
        fetches,
        placed,
        guests,
        tuple(sums),
        tuple(o for o in gathered if o not in sums),
        published,
        {t: root[t] for n in nodes for t in (*n.inputs, *n.outputs) if t},
        budget if placed else min(budget, context.budget),
        halves,
        passage,
    )


def _budget(nodes: Sequence[Node], room: int, height: int) -> int:
    """Bytes for the tiles of one node beside regions of this height."""
    budget = (room - height) * TENTHS_FOR_A_NODE // 10
    if budget < min(4096, room // 8) and height:
        raise GroupDoesNotFit(
            nodes[0].name,
            f"group of '{nodes[0].name}': what stays on chip takes {height} bytes of the {room} of "
            "the global buffer and leaves no room for tiles; use a smaller sub-batch",
        )
    return budget


_CONVOLUTIONS = {"conv": Conv, "conv_dx": ConvDx, "conv_dw": ConvDw}

_CHANNELS = 64
"""A convolution that reads beyond a tensor on chip without zeros around it takes whole planes of at
least so many channels through the vector unit, or the array would get too little to multiply."""


def _reads_beyond(context: Scope, node: Node) -> Margin:
    """How far a convolution reads beyond the planes of its first operand."""
    gemm = _CONVOLUTIONS[node.op](node, context.graph, dict(context.dtypes), context.accum)
    whole = {name: (ZERO, level.total) for name, level in gemm.levels.items()}
    starts, sizes = gemm.box("moving", whole)
    shape = context.graph[node.inputs[0]].shape
    rows, columns = (
        (max(0, -s.const), max(0, s.const + n - d))
        for s, n, d in zip(starts[-2:], sizes[-2:], shape[-2:], strict=True)
    )
    return rows, columns


def _margins(
    context: Scope,
    nodes: Sequence[Node],
    turn: Turn,
    touched: Iterable[str],
    root: Mapping[str, str],
    wanted: set[str],
) -> dict[str, Margin]:
    """The zeros that regions keep around their planes, where every name of the region's tensor
    shows the same planes."""
    found: dict[str, Margin] = {}
    for node in nodes:
        name = root[node.inputs[0]] if node.op in _CONVOLUTIONS else ""
        if name not in wanted:
            continue
        mine = _reads_beyond(turn.at(context, node), turn.node(node))
        other = found.get(name, ((0, 0), (0, 0)))
        rows, columns = (
            (max(a[0], b[0]), max(a[1], b[1])) for a, b in zip(mine, other, strict=True)
        )
        if any((*rows, *columns)):
            found[name] = rows, columns
    planes: dict[str, set[tuple[int, ...]]] = {}
    for t in touched:
        shape = context.graph[t].shape
        planes.setdefault(root[t], set()).add(shape[-2:] if len(shape) > 3 else ())
    return {name: m for name, m in found.items() if len(planes[name]) == 1}


def _inherited(
    context: Scope,
    nodes: Sequence[Node],
    names: Mapping[str, str],
    turns: tuple[Turn, ...],
    group: Group,
    root: Mapping[str, str],
) -> tuple[Turn, ...]:
    """Whole images with margins also where a result that has them is to take a place."""
    turn, *others = turns
    if others:
        return turns
    fixed = {root[t] for t in (*group.kept, *group.found, *group.left)}
    margins = inherited(context, nodes, names, turn.margins, fixed)
    return (replace(turn, margins=margins),)


def _too_wide(context: Scope, node: Node, turn: Turn, root: Mapping[str, str]) -> bool:
    """True when a node is better off loading its padded operand from DRAM."""
    if node.op not in _CONVOLUTIONS or root[node.inputs[0]] in turn.margins:
        return False
    tensor = node.inputs[0]
    plane = prod(context.graph[tensor].shape[2:]) * DTYPE_BYTES[context.dtypes[tensor]]
    if plane * _CHANNELS <= context.machine.gbuf_bytes // 8:
        return False
    return any(sum(m) for m in _reads_beyond(turn.at(context, node), turn.node(node)))


def _gathers(node: Node, axis: BatchAxis) -> bool:
    """True when sub-batches give partial results."""
    return axis.kinds[node.name] in ("sums", "merges")


def _check(graph: Graph, group: Group, nodes: Sequence[Node], axis: BatchAxis) -> None:
    """Only work on samples may be cut into sub-batches, and sums are read after the last one."""
    gathered = {o for n in nodes if _gathers(n, axis) for o in n.outputs}
    for node in nodes:
        if node.attr("fused"):  # runs when its gradient is complete
            continue
        kind = axis.kinds[node.name]
        if kind == "mixes" or (kind == "free" and node.op != "reshape"):
            raise CodegenError(
                f"'{node.name}' ({node.op}) does not work sample by sample and cannot be in a "
                "group with a sub-batch"
            )
        read = gathered & set(node.inputs)
        if read:
            raise CodegenError(
                f"'{node.name}' reads '{min(read)}', which is complete only after the last "
                "sub-batch of its own group"
            )
    if group.sub_batch % axis.grain:
        raise CodegenError(f"a sub-batch must be a multiple of {axis.grain} samples here")


def _published(
    graph: Graph,
    nodes: Sequence[Node],
    names: Mapping[str, str],
    root: Mapping[str, str],
    gone: frozenset[str],
) -> frozenset[str]:
    """Tensors made and kept in a group that somebody outside needs, but for those that are `gone`:
    all of them stays for the next group, which alone needs them."""
    inside = {n.name for n in nodes}
    made = {o for n in nodes if n.op != "reshape" for o in n.outputs if o in names}
    made = {t for t in made if names[t] not in gone}
    return frozenset(t for t in made if _leaves(graph, root, names[t], inside))


def _leaves(graph: Graph, root: Mapping[str, str], name: str, inside: set[str]) -> bool:
    """True when the bytes of a tensor are needed outside the group."""
    for t, r in root.items():
        if r != name:
            continue
        if t in graph.needed or graph.tensors[t].role != "value":
            return True
        if any(n.name not in inside for n in graph.consumers.get(t, ())):
            return True
    return False


def _bytes(shape: Sequence[int], dtype: str) -> int:
    return -(-prod(shape) * DTYPE_BYTES[dtype] // ALIGNMENT) * ALIGNMENT


def _rectangles(
    context: Scope,
    nodes: Sequence[Node],
    axis: BatchAxis,
    samples: int,
    names: Mapping[str, str],
    turns: Sequence[Turn],
    group: Group,
    root: Mapping[str, str],
    halves: bool,
) -> list[Rectangle]:
    """The regions of a group before they have addresses."""
    life: dict[str, list[int]] = {}
    shown: dict[str, list[str]] = {}
    for at, node in enumerate(nodes):
        for t in (*node.inputs, *node.outputs):
            if t in names:
                life.setdefault(names[t], []).append(at)
                shown.setdefault(names[t], []).append(t)
    kept = {root[t] for t in group.kept}
    found = []
    for name, touched in life.items():
        # of the shapes that the nodes see: zeros go around these, not around one made elsewhere
        twice = halves and name in axis.rows
        part = half_of(samples, axis.grain) if twice else samples
        local = (_local(context.graph[t], axis, part) for t in dict.fromkeys(shown[name]))
        size = (1 + twice) * max(
            _bytes(with_margin(turn.shape(t), turn.margins.get(name)), context.dtypes[name])
            for t in local
            for turn in turns
        )
        begin, end = min(touched), max(touched) + 1
        if name in kept:
            begin, end = 0, len(nodes)
        found.append(Rectangle(name, begin, end, size))
    for t, name in _above(turns).items():  # rows that wait for the next band
        rows = max(turn.above(t) for turn in turns)
        shape = banded(_local(context.graph[t], axis, samples), (0, rows)).shape
        found.append(Rectangle(name, 0, len(nodes), _bytes(shape, context.dtypes[t])))
    return found


def _held(context: Scope, nodes: Sequence[Node], sums: Iterable[str]) -> list[Rectangle]:
    """The regions in which sums over the batch gather."""
    size = {o: _bytes(context.graph[o].shape, context.accum) for o in sums}
    return [Rectangle(o, 0, len(nodes), size[o]) for o in size]


def _operands(
    context: Scope,
    nodes: Sequence[Node],
    axis: BatchAxis,
    samples: int,
    names: Mapping[str, str],
    turns: Sequence[Turn],
    root: Mapping[str, str],
    ends: Mapping[int, int],
) -> list[Guest]:
    """What the array reads from DRAM and could as well read from a region, as far as it reads no
    zeros around it and no rows of it alone, and nothing in the group makes it."""
    made = {
        root[o] for n in nodes if n.op != "reshape" and not n.attr("fused") for o in n.outputs if o
    }
    found = []
    for place, node in enumerate(nodes):
        if node.op not in (*_CONVOLUTIONS, "matmul"):
            continue
        for i, tensor in enumerate(dict.fromkeys(node.inputs[:2])):
            plain = i or node.op == "matmul" or not any(map(any, _reads_beyond(context, node)))
            if root[tensor] in made or any(tensor in turn.needs for turn in turns):
                continue
            if ends and tensor in axis.rows:  # halves would have to take turns
                continue
            if plain and tensor not in names:
                shape = _local(context.graph[tensor], axis, samples).shape
                size = _bytes(shape, context.dtypes[tensor])
                found.append(Guest(node.name, tensor, place, size, ends.get(place, 0)))
    return found


def _above(turns: Sequence[Turn]) -> dict[str, str]:
    return {t: f"{t}/above" for turn in turns for t in turn.carried}


def regions_of(plan: GroupPlan, dtypes: Mapping[str, str], accum: str) -> dict[str, Region]:
    """The regions of a plan, by the tensor that names them; of a guest and of rows that bands
    carry, by their own name."""
    made = {}
    visits = {g.region: dtypes[g.tensor] for g in plan.guests}
    visits |= {region: dtypes[t] for t, region in plan.above.items()}
    for r in plan.rectangles:
        dtype = accum if r.name in plan.sums else visits.get(r.name) or dtypes[r.name]
        depth = 2 if plan.halves and r.name in plan.axis.rows else 1
        size = r.size // depth // DTYPE_BYTES[dtype]
        made[r.name] = Region(f"r.{r.name}", dtype, size, r.address, depth)
    return made
