"""Where every tensor lies in DRAM.

A reshaped tensor is another name for the same bytes; so is the new value of a parameter, when the
kernel that makes it reads each element before it writes it.  Other tensors get addresses of
their own, and share them only when their lives do not overlap (first fit, largest first
within equal births).
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Mapping as MappingType
from collections.abc import Sequence
from dataclasses import replace

from ccnn.compiler.codegen.group import partial_name
from ccnn.compiler.codegen.plan import GroupPlan
from ccnn.passes.graph import Graph, Node
from ccnn.targets.program import DTYPE_BYTES, Placed

ALIGNMENT = 64
"""Bytes; a DRAM burst."""


def machine_dtypes(graph: Graph, dtype: str, accum: str) -> dict[str, str]:
    """The machine dtype of every tensor."""
    kinds = {"float": dtype, "accum": accum, "index": "i32", "bytes": "u8"}
    return {name: kinds[t.dtype] for name, t in graph.tensors.items()}


def alias_roots(graph: Graph) -> dict[str, str]:
    """Each tensor to the tensor whose bytes it shares (itself, when it has its own)."""
    root: dict[str, str] = {}
    for name, tensor in graph.tensors.items():
        if tensor.role != "value":
            root[name] = name
    for node in graph.nodes:
        for out in node.outputs:
            root[out] = root[node.inputs[0]] if node.op == "reshape" else out
    sharing: dict[str, list[str]] = {}
    for name, owner in root.items():
        sharing.setdefault(owner, []).append(name)
    place = {o: i for i, node in enumerate(graph.nodes) for o in node.outputs}
    last = {name: i for i, node in enumerate(graph.nodes) for name in node.inputs if name}
    for old, new in graph.updates.items():
        uses = max((last.get(n, -1) for n in sharing.get(old, ())), default=-1)
        if _in_place(graph, root, old, new) and uses <= place[new]:
            moved = sharing.pop(new)
            sharing[old] += moved
            root |= dict.fromkeys(moved, old)
    return root


def _in_place(graph: Graph, root: dict[str, str], old: str, new: str) -> bool:
    """True when the kernel that makes `new` could write over `old`, were it its last reader."""
    node = graph.producer.get(new)
    if node is None or root[new] != new or root[old] != old or node.op != "map":
        return False
    return graph[old].dtype == graph[new].dtype and graph[old].shape == graph[new].shape


def copies(graph: Graph, root: dict[str, str]) -> list[tuple[str, str]]:
    """Updates that did not become aliases: (state tensor, its new value), to copy at the end."""
    return [(old, new) for old, new in graph.updates.items() if root[new] != old]


def place_tensors(
    graph: Graph,
    dtypes: MappingType[str, str],
    root: dict[str, str],
    plans: Sequence[GroupPlan] = (),
    accum: str = "",
    together: Sequence[tuple[Node, ...]] = (),
) -> tuple[tuple[Placed, ...], int]:
    """Addresses for all tensors, and the bytes of DRAM they take together.

    What lives and dies in the buffer inside a group gets none; a sum that gathers in DRAM gets
    a tensor of its own for as long as its group runs.  Nodes that run `together` meet no tensor
    of each other's place.
    """
    life = _lives(graph, root, plans, together)
    graph = _without_handed(graph, root, plans)
    living: list[tuple[int, int, int]] = []  # address, end, death
    address: dict[str, int] = {}
    soonest = len(graph.nodes)  # the earliest death among the living
    dram = kept = 0  # what is there before the step comes first, and stays
    sizes = {name: max(_size(graph, dtypes, name), ALIGNMENT) for name in life}
    # in the order of birth, so what has died cannot be in the way again
    for name in sorted(life, key=lambda n: (life[n][0], -sizes[n], n)):
        birth, death = life[name]
        if birth < 0:
            address[name] = kept
            dram = kept = kept + sizes[name]
            continue
        if soonest < birth:
            living = [block for block in living if block[2] >= birth]
            soonest = min((dead for _, _, dead in living), default=death)
        at = _first_gap(living, kept, sizes[name])
        address[name] = at
        insort(living, (at, at + sizes[name], death))
        soonest = min(soonest, death)
        dram = max(dram, at + sizes[name])
    placed = [
        Placed(t.name, t.shape, dtypes[t.name], t.role, address[root[t.name]])
        for t in graph.tensors.values()
        if root[t.name] in address
    ]
    for plan in plans:
        for name in plan.partial:
            size = graph[name].size * DTYPE_BYTES[accum]
            shape = graph[name].shape
            placed.append(Placed(partial_name(name), shape, accum, "value", dram))
            dram += -(-size // ALIGNMENT) * ALIGNMENT
    return tuple(placed), dram


def _first_gap(living: list[tuple[int, int, int]], at: int, size: int) -> int:
    """The lowest address from `at` on with that much room between the blocks, which are sorted."""
    for start, end, _ in living:
        if start >= at + size:
            break
        at = max(at, end)
    return at


def _size(graph: Graph, dtypes: MappingType[str, str], name: str) -> int:
    return -(-graph[name].size * DTYPE_BYTES[dtypes[name]] // ALIGNMENT) * ALIGNMENT


def _without_handed(graph: Graph, root: dict[str, str], plans: Sequence[GroupPlan]) -> Graph:
    """The graph with the shapes that tensors have in DRAM: what stays in the buffer from one group
    to the next, and is read by nobody else, is not there."""
    gone = {h.tensor: h.samples for plan in plans for h in plan.passage.left if h.only}
    if not gone:
        return graph
    rows = plans[0].axis.rows
    tensors = dict(graph.tensors)
    for name, tensor in graph.tensors.items():
        if root[name] in gone:
            less = int(rows[name] * gone[root[name]])
            tensors[name] = replace(tensor, shape=(tensor.shape[0] - less, *tensor.shape[1:]))
    return replace(graph, tensors=tensors)


def _lives(
    graph: Graph,
    root: dict[str, str],
    plans: Sequence[GroupPlan],
    together: Sequence[tuple[Node, ...]],
) -> dict[str, tuple[int, int]]:
    """Each root to the first and last node of its life; what must outlast the step never dies."""
    end = len(graph.nodes)
    life: dict[str, tuple[int, int]] = {}

    def touch(name: str, when: int) -> None:
        low, high = life.get(root[name], (when, when))
        life[root[name]] = (min(low, when), max(high, when))

    for name, tensor in graph.tensors.items():
        if tensor.role != "value":
            touch(name, -1)
            touch(name, end)
    place = {n.name: i for i, n in enumerate(graph.nodes)}
    span: dict[str, tuple[int, int]] = {}
    hidden = {
        root[g]
        for n in graph.nodes
        if n.attr("fused")
        for g in n.inputs
        if g in graph.producer and g not in graph.needed
    }
    for nodes in (*(plan.nodes for plan in plans), *together):
        at = [place[n.name] for n in nodes]
        span |= {n.name: (min(at), max(at)) for n in nodes}
    for plan in plans:
        made = {
            root[o]
            for n in plan.nodes
            for o in n.outputs
            if n.op != "reshape" and not n.attr("fused")
        }
        out = {root[t] for t in plan.published}
        hidden |= {root[t] for t in plan.names if root[t] in made} - out
    for i, node in enumerate(graph.nodes):
        for name in (*node.inputs, *node.outputs):
            if name and root[name] not in hidden:
                # the nodes of a kernel run side by side
                for when in span.get(node.name, (i,)):
                    touch(name, when)
    for name in graph.needed:
        touch(name, end)
    return life


def copy_nodes(graph: Graph, root: dict[str, str]) -> list[Node]:
    """Nodes that write back updates which could not be made in place."""
    return [
        Node(f"write_back.{old}", "write_back", (new,), (old,), (), "", "update")
        for old, new in copies(graph, root)
    ]
