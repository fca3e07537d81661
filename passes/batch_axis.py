"""Which tensors hold the mini-batch along their first axis, and what each node does with it.

A tensor of shape [N r, …] whose rows n r … (n + 1) r - 1 belong to sample n alone is *batched*
with r rows a sample; r is a fraction where samples share a row ([N/4, 4, …] has 1/4).  A node

    keeps     computes each sample from that sample: it can run on any sub-batch,
    sums      adds up (or takes the largest of) something over the samples: sub-batches give
              partial results; whoever reads the result waits for the last of them,
    merges    takes moments over the samples: as `sums`, but partial results do not just add up,
    mixes     reads other samples, or draws numbers by position: needs the whole batch at once,
    free      has nothing to do with samples (weights, statistics, constants).

Works on graphs of primitives; any other op mixes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import lcm
from typing import Literal

from ccnn.passes.graph import Graph, GraphError, Node, Tensor

Kind = Literal["keeps", "sums", "merges", "mixes", "free"]
Rows = Fraction | None
Rule = Callable[[Node, Sequence[Tensor], Sequence[Rows], "Sequence[Tensor]"], Kind]
"""Kind of a node that reads at least one batched tensor: node, inputs, their rows, results."""


@dataclass(frozen=True)
class BatchAxis:
    """What `batch_axis` found."""

    batch: int
    rows: Mapping[str, Fraction]
    """Rows a sample of every batched tensor."""
    kinds: Mapping[str, Kind]
    """Node name to what it does with the samples."""

    @property
    def grain(self) -> int:
        """A sub-batch must be a multiple of this many samples, or rows would be torn."""
        return lcm(1, *(r.denominator for r in self.rows.values()))


def batch_size(graph: Graph) -> int:
    """The first dimension of the first input that has one; raises GraphError when none does."""
    for tensor in graph.of_role("input"):
        if tensor.shape:
            return tensor.shape[0]
    raise GraphError(f"graph '{graph.name}' has no input with a batch dimension")


def batch_axis(graph: Graph, batch: int = 0) -> BatchAxis:
    """Follow the samples through the graph; `batch` 0 means that of the first input."""
    n = batch or batch_size(graph)
    rows: dict[str, Fraction] = {
        t.name: Fraction(1) for t in graph.of_role("input") if t.shape[:1] == (n,)
    }
    kinds: dict[str, Kind] = {}
    for node in graph.nodes:
        ins = [graph[i] for i in node.inputs if i]
        outs = [graph[o] for o in node.outputs if o]
        seen = [rows.get(t.name) or _rows_beside(t, node, outs, rows, n) for t in ins]
        kind = _kind(node, ins, seen, outs, n)
        kinds[node.name] = kind
        if kind == "keeps":
            rows |= {t.name: Fraction(t.shape[0], n) for t in outs}
        if kind != "free":
            rows |= {t.name: r for t, r in zip(ins, seen, strict=True) if r is not None}
        if node.op == "random" and outs[0].shape[:1] == (n,):
            rows[outs[0].name] = Fraction(1)  # drawn whole, read sample by sample
    return BatchAxis(n, rows, kinds)


def _rows_beside(
    t: Tensor, node: Node, outs: Sequence[Tensor], rows: Mapping[str, Fraction], n: int
) -> Rows:
    """A constant as long as the batch beside batched tensors is read sample by sample."""
    beside = any(i in rows for i in node.inputs)
    full = node.op in ("map", "reduce") and beside and t.role == "constant"
    return Fraction(t.shape[0], n) if full and t.shape[:1] == (n,) and _rank(outs, t) else None


def _rank(outs: Sequence[Tensor], t: Tensor) -> bool:
    return all(len(o.shape) == len(t.shape) for o in outs)


def _kind(
    node: Node, ins: Sequence[Tensor], rows: Sequence[Rows], outs: Sequence[Tensor], n: int
) -> Kind:
    if node.op == "expand" and rows == [None] and outs[0].shape[:1] == (n,) and ins[0].size == 1:
        return "keeps"  # one number for every sample
    if node.op == "random":
        return "mixes"
    if all(r is None for r in rows):
        return "free"
    rule = RULES.get(node.op)
    kind = rule(node, ins, rows, outs) if rule else "mixes"
    if kind == "keeps" and any(not o.shape or not _divides(o.shape[0], n) for o in outs):
        return "mixes"
    return kind


def _divides(rows: int, n: int) -> bool:
    """True when each sample has whole rows, or each row whole samples."""
    return rows > 0 and (rows % n == 0 or n % rows == 0)


def _first_only(
    node: Node, ins: Sequence[Tensor], rows: Sequence[Rows], outs: Sequence[Tensor]
) -> Kind:
    """conv, conv_dx: batched data, shared weights."""
    return "keeps" if rows[0] is not None and not any(rows[1:]) else "mixes"


def _weight_gradient(
    node: Node, ins: Sequence[Tensor], rows: Sequence[Rows], outs: Sequence[Tensor]
) -> Kind:
    return "sums" if all(rows) else "mixes"


def _matmul(
    node: Node, ins: Sequence[Tensor], rows: Sequence[Rows], outs: Sequence[Tensor]
) -> Kind:
    a, b = ins[:2]
    if any(rows[2:]):
        return "mixes"
    if len(a.shape) > 2:
        same = rows[1] == rows[0] if len(b.shape) > 2 else rows[1] is None
        return "keeps" if rows[0] is not None and same else "mixes"
    if rows[1] is None:
        return "keeps" if not node.attr("trans_a") else "mixes"
    inner = node.attr("trans_a") and not node.attr("trans_b")
    return "sums" if inner and rows[0] == rows[1] and len(ins) == 2 else "mixes"


def _broadcast(
    node: Node, ins: Sequence[Tensor], rows: Sequence[Rows], outs: Sequence[Tensor]
) -> Kind:
    """Batched operands have full rank and the same rows; others are the same for all samples."""
    rank = max(len(t.shape) for t in ins)
    long = max(t.shape[0] for t in ins if len(t.shape) == rank)
    for t, r in zip(ins, rows, strict=True):
        first = t.shape[0] if len(t.shape) == rank else 1
        if first != (1 if r is None else long):
            return "mixes"
    return "keeps"


def _reduce(
    node: Node, ins: Sequence[Tensor], rows: Sequence[Rows], outs: Sequence[Tensor]
) -> Kind:
    kind = _broadcast(node, ins, rows, outs)
    return "sums" if kind == "keeps" and 0 in node.attr("axes") else kind


def _moments(
    node: Node, ins: Sequence[Tensor], rows: Sequence[Rows], outs: Sequence[Tensor]
) -> Kind:
    return "merges" if 0 in node.attr("axes") else "keeps"


def _window(
    node: Node, ins: Sequence[Tensor], rows: Sequence[Rows], outs: Sequence[Tensor]
) -> Kind:
    first = [node.attr(k)[0] for k in ("kernel", "strides", "before", "after")]
    return "keeps" if first == [1, 1, 0, 0] and all(rows) else "mixes"


def _same_first(
    node: Node, ins: Sequence[Tensor], rows: Sequence[Rows], outs: Sequence[Tensor]
) -> Kind:
    """slice, pad, concat, transpose, expand: the first axis is left as it is."""
    pairs = [(o, t, r) for o in outs for t, r in zip(ins, rows, strict=True)]
    kept = all(r and o.shape[:1] == t.shape[:1] for o, t, r in pairs)
    turned = node.op == "transpose" and node.attr("perm")[0] != 0
    back = node.op == "slice" and node.attr("steps")[0] < 0
    moved = node.op == "pad" and any(node.attr(k)[0] for k in ("before", "after"))
    joined = node.op == "concat" and node.attr("axis") == 0
    deeper = any(len(o.shape) != len(t.shape) for o, t, _ in pairs)
    return "keeps" if kept and not (turned or back or moved or joined or deeper) else "mixes"


def _reshape(
    node: Node, ins: Sequence[Tensor], rows: Sequence[Rows], outs: Sequence[Tensor]
) -> Kind:
    return "keeps"  # a sample's elements are contiguous; `_kind` looks whether rows fit


RULES: dict[str, Rule] = {
    "conv": _first_only,
    "conv_dx": _first_only,
    "conv_dw": _weight_gradient,
    "matmul": _matmul,
    "map": _broadcast,
    "reduce": _reduce,
    "moments": _moments,
    "window_sum": _window,
    "window_max": _window,
    "window_sum_grad": _window,
    "window_max_grad": _window,
    "slice": _same_first,
    "pad": _same_first,
    "concat": _same_first,
    "transpose": _same_first,
    "expand": _same_first,
    "reshape": _reshape,
}
"""What decides for each primitive."""
