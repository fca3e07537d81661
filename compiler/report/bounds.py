"""Lower bounds of a step: what no schedule on this machine can go below, and why.

The bounds hold for the direct algorithm (every multiply-accumulate of a convolution or matrix
product done once, on the array or, of convolutions in groups, on the vector unit) in the chosen
precision, for whatever order, tiling and fusion.  They are not claimed to be reachable.

With M the multiply-accumulates, G those of convolutions in groups, A the PEs of all arrays, L the
lanes, R and W the bytes that must be read and written, and B the DRAM bytes per cycle:

    cycles >= max(ceil((M - G) / A), ceil(M / (A + L)), ceil((R + W) / B))
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, prod

from ccnn.compiler.codegen.lanes import may_use_lanes
from ccnn.passes.graph import Graph, Node, Tensor
from ccnn.passes.ops import op_named
from ccnn.targets.machine import Machine

_ARRAY_OPS = ("conv", "conv_dx", "conv_dw", "matmul")
_RENAMING_OPS = ("reshape", "transpose")
_PARTIAL_OPS = ("slice", "pad", "concat", "expand", "gather")


@dataclass(frozen=True)
class Bound:
    """What one total cannot go below (or, for a utilisation, above)."""

    key: str
    value: float
    direction: str
    formula: str
    why: str


@dataclass(frozen=True)
class Precision:
    """Bytes of one element, by dtype of the graph."""

    float_bytes: int
    accum_bytes: int

    def bytes_of(self, tensor: Tensor, elements: int | None = None) -> int:
        """Bytes of a tensor, or of so many elements of it."""
        size = {"float": self.float_bytes, "accum": self.accum_bytes, "index": 4, "bytes": 1}
        return (tensor.size if elements is None else elements) * size[tensor.dtype]


_TABLE = (
    (
        "cycles",
        "max(ceil(macs bound / PEs), ceil(all macs / (PEs + lanes)), "
        "ceil((dram read + write bound) / bytes per cycle))",
        "a PE or a lane does at most one MAC a cycle, lanes only those of convolutions in groups, "
        "and DRAM has one channel",
    ),
    ("seconds", "cycles bound / (clock_ghz * 1e9)", "the clock is fixed"),
    (
        "macs",
        "sum over matrix products and convolutions without groups, kernel taps on padding left out",
        "the direct algorithm does every multiply-accumulate once, these on the array; padding is "
        "zero",
    ),
    (
        "dram_read_bytes",
        "parameters + inputs + state, the elements used",
        "the buffers are empty when the step starts, so each must come from DRAM once",
    ),
    (
        "dram_write_bytes",
        "updated parameters and state + outputs",
        "they must outlive the step, and only DRAM does",
    ),
    (
        "gbuf_bytes",
        "dram read and write bounds + operands and results of products, each tensor once",
        "every DRAM byte passes the GBUF, and products are made from it and put into it",
    ),
    (
        "lbuf_bytes",
        "ceil(macs bound / cols) * bytes of an operand",
        "a word streamed from LBUF_H meets at most one weight in each column",
    ),
    (
        "energy_pj",
        "sum over actions of their bounds above * energy of the action; macs of convolutions in "
        "groups at that of a PE or of a lane, whichever is lower",
        "no action can happen less often than its bound",
    ),
    (
        "pe_utilisation",
        "macs of the program / (cycles bound * PEs), 1 at most",
        "with the fewest cycles the PEs are busiest",
    ),
    ("program_bytes", "0", "no useful floor is known; fetching the program is not modelled"),
)
"""Key, formula, and in one sentence why nothing can do better."""


def bounds(
    graph: Graph, machine: Machine, precision: Precision, executed_macs: int | None = None
) -> tuple[Bound, ...]:
    """The bound of each total of a step, given the graph in primitives.

    `executed_macs` are those of the program's array, by default the fewest possible; a program may
    also multiply padding, and groups, and utilisation counts that.
    """
    every = count_macs(graph)
    macs = every - sum(node_macs(graph, n) for n in graph.nodes if may_use_lanes(n))
    read = compulsory_read_bytes(graph, precision)
    write = compulsory_write_bytes(graph, precision)
    peak = machine.peak_macs_per_cycle
    busy = max(ceil(macs / peak), ceil(every / (peak + machine.lanes)))
    moved = ceil((read + write) / machine.bytes_per_cycle)
    cycles = max(busy, moved)
    capacity = cycles * peak
    executed = macs if executed_macs is None else executed_macs
    gbuf = read + write + _array_bytes(graph, precision)
    lbuf = ceil(macs / machine.cols) * precision.float_bytes
    values = {
        "cycles": cycles,
        "seconds": cycles / (machine.clock_ghz * 1e9),
        "macs": macs,
        "dram_read_bytes": read,
        "dram_write_bytes": write,
        "gbuf_bytes": gbuf,
        "lbuf_bytes": lbuf,
        "energy_pj": _energy(
            machine, precision, (macs, every - macs), (read + write, gbuf, lbuf), cycles
        ),
        "pe_utilisation": min(1.0, executed / capacity) if capacity else 0.0,
        "program_bytes": 0,
    }
    return tuple(
        Bound(key, values[key], "at most" if key == "pe_utilisation" else "at least", formula, why)
        for key, formula, why in _TABLE
    )


def count_macs(graph: Graph) -> int:
    """Multiply-accumulates of all nodes, those with padding left out."""
    return sum(node_macs(graph, node) for node in graph.nodes)


def node_macs(graph: Graph, node: Node) -> int:
    """Multiply-accumulates of one node; what meets padding is zero and need not be done.

    A convolution and its two gradients multiply the same pairs of places and kernel taps.
    """
    if node.op not in ("conv", "conv_dx", "conv_dw"):
        inputs = [graph[name] if name else None for name in node.inputs]
        return op_named(node.op).macs(node, inputs, [graph[name] for name in node.outputs if name])
    first, second, result = (graph[n].shape for n in (*node.inputs[:2], node.outputs[0]))
    x, w, y = {
        "conv": (first, second, result),
        "conv_dx": (result, second, first),
        "conv_dw": (first, result, second),
    }[node.op]
    a = node.attributes
    pairs = zip(x[2:], y[2:], w[2:], a["strides"], a["dilations"], a["pads"][:2], strict=True)
    return x[0] * prod(w[:2]) * prod(len(_meetings(*pair)) for pair in pairs)


def _meetings(
    size: int, out: int, kernel: int, stride: int, dilation: int, before: int
) -> list[int]:
    """The place that each output and kernel tap meet at, where it is one of the `size`."""
    places = (o * stride + r * dilation - before for o in range(out) for r in range(kernel))
    return [p for p in places if 0 <= p < size]


def compulsory_read_bytes(graph: Graph, precision: Precision) -> int:
    """Bytes of inputs, parameters and state that some node needs."""
    return sum(
        precision.bytes_of(t, elements_used(graph, t))
        for t in graph.of_role("input", "parameter", "state")
    )


def compulsory_write_bytes(graph: Graph, precision: Precision) -> int:
    """Bytes of computed outputs and updates; renamed tensors count once."""
    results = {root_of(graph, name) for name in (*graph.outputs, *graph.updates.values())}
    return sum(precision.bytes_of(graph[n]) for n in results if graph[n].role == "value")


def root_of(graph: Graph, name: str) -> str:
    """The tensor that holds the same elements before any reshaping and transposing."""
    while (node := graph.producer.get(name)) is not None and node.op in _RENAMING_OPS:
        name = node.inputs[0]
    return name


def elements_used(graph: Graph, tensor: Tensor) -> int:
    """How many elements of a tensor the step cannot do without (a lower bound)."""
    most = 0
    for node in graph.consumers[tensor.name]:
        followed = node.op == "slice" and not set(node.outputs) & graph.needed
        if followed or node.op in _RENAMING_OPS:
            most = max(most, elements_used(graph, graph[node.outputs[0]]))
        elif node.op not in _PARTIAL_OPS:
            most = max(most, _elements_read(graph, node, tensor))
    return most


def _elements_read(graph: Graph, node: Node, tensor: Tensor) -> int:
    a = node.attributes
    if node.op == "conv" and node.inputs[0] == tensor.name:
        kernel, out = graph[node.inputs[1]].shape[2:], graph[node.outputs[0]].shape[2:]
        before = a["pads"][:2]
    elif node.op == "conv_dw" and node.inputs[0] == tensor.name:
        kernel, out = graph[node.outputs[0]].shape[2:], graph[node.inputs[1]].shape[2:]
        before = a["pads"][:2]
    elif node.op in ("window_sum", "window_max"):
        kernel, out, before = a["kernel"], graph[node.outputs[0]].shape, a["before"]
    else:
        return tensor.size
    rank = len(kernel)
    steps = zip(
        tensor.shape[-rank:], out, kernel, a["strides"], a["dilations"], before, strict=True
    )
    return prod(tensor.shape[:-rank]) * prod(len(set(_meetings(*step))) for step in steps)


def _array_bytes(graph: Graph, precision: Precision) -> int:
    """Bytes of the tensors that products read and write, each once."""
    read: dict[str, int] = {}
    written: set[str] = set()
    for node in graph.nodes:
        if node.op not in _ARRAY_OPS:
            continue
        written.update(root_of(graph, name) for name in node.outputs if name)
        for name in node.inputs[:2]:
            size = _elements_read(graph, node, graph[name])
            root = root_of(graph, name)
            read[root] = max(read.get(root, 0), precision.bytes_of(graph[name], size))
    return sum(read.values()) + sum(precision.bytes_of(graph[name]) for name in written)


def _energy(
    machine: Machine,
    precision: Precision,
    macs: tuple[int, int],
    moved: tuple[int, int, int],
    cycles: int,
) -> float:
    """Picojoules of `macs` on the array and on either unit, bytes `moved` by DRAM, GBUF and LBUF,
    and cycles."""
    table = machine.energy_pj
    mac = table.get(f"mac_{8 * precision.float_bytes}bit", 0.0)
    alone, either = macs
    dram, gbuf, lbuf = moved
    counts = (("dram_byte", dram), ("gbuf_byte", gbuf), ("lbuf_byte", lbuf))
    rest = sum(table.get(action, 0.0) * count for action, count in counts)
    work = mac * alone + min(mac, table.get("vector_op", 0.0)) * either
    return work + rest + table.get("static_cycle", 0.0) * cycles


def bound_values(found: Sequence[Bound]) -> dict[str, float]:
    """Key to value."""
    return {b.key: b.value for b in found}
