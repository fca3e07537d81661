"""Pass `fuse-layers`: a layer and the vector work around it as one group, streaming through.

before:  %m, %v = moments(%y) {…}
         %z = map(%y, %m, %i) {exprs=("max((a - b) * c, 0)",)}
         %t = conv(%z, %w) {…}
         %n, %u = moments(%t) {…}
after:   the same nodes, and
         group [apply, conv, moments.1] sub_batch 4 resident [%z, %t] kept [%n, %u]

On a conventional schedule each of these nodes sends its result through DRAM.  Here what a layer
(convolution or matrix product) reads is made in its *prologue* and what it makes is used in its
*epilogue*, a few samples at a time: the apply step and activation of the norm in front, reductions
for the norm behind, residual sums, pooling, concatenation.  Backward, a layer is its dX and dW,
which share one sweep over dY.  Convolutions that read one tensor, as the branches of a block do,
may share it too.  Unlike in mini-batch serialization no two layers are in one group, so
nothing but whole tensors crosses from layer to layer.

A group never leads across a reduction that all of the batch has to pass: the two halves of a split
norm fuse with its two neighbours (Jung et al. 2019 for batch norms; Wang, Hao and Li 2020, of whose
blocks BRCB is the default here and BRC is `next_norm=False`).

Which nodes to fuse is chosen exactly, by least DRAM traffic, among all cuts of the sequence of
nodes; sub-batches and what stays on chip are those of passes/serialize_minibatch.py.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

from ccnn.passes.batch_axis import batch_axis
from ccnn.passes.graph import Graph
from ccnn.passes.grouping import group_exactly
from ccnn.passes.place_groups import place_groups
from ccnn.passes.serialize_minibatch import Planner, SerializeMinibatch
from ccnn.passes.sink import sink_nodes
from ccnn.passes.steps import ARRAY_OPS, ElementBytes, Steps, make_steps


@dataclass(frozen=True)
class FuseLayers:
    """Groups each layer with the vector work in front of it and behind it."""

    name: ClassVar[str] = "fuse-layers"
    buffer_bytes: int = 10 * 2**20
    reserved_bytes: int = 0
    """Part of the buffer for what streams through: tiles of weights and non-resident tensors."""
    batch: int = 0
    """0: the first dimension of the first input."""
    next_norm: bool = True
    """Also fuse the first half of the norm behind a layer, forward and backward."""
    merge_moments: bool = False
    """Whether the target can merge moments of sub-batches; else they are a barrier."""
    in_place: bool = False
    """As in serialize-minibatch."""
    bytes_per: ElementBytes = field(default_factory=ElementBytes)

    def __post_init__(self) -> None:
        self._options()  # has the checks

    def __call__(self, graph: Graph) -> Graph:
        """The grouped graph of primitives; groups it had before are dropped."""
        graph = replace(graph, groups=())
        axis = batch_axis(graph, self.batch)
        planned = []
        for order in (graph, sink_nodes(graph)):
            steps = make_steps(order, axis, self.bytes_per)
            ends = run_ends(steps, self.next_norm)
            planner = Planner(steps, self._options(), range(len(steps.nodes) + 1))
            groups = planner.refined(group_exactly(len(steps.nodes), planner.price, ends))
            planned.append((sum(p.cost for _, p in groups), steps, groups))
        _, steps, groups = min(planned, key=lambda p: p[0])
        return place_groups(steps, groups)

    def _options(self) -> SerializeMinibatch:
        return SerializeMinibatch(
            self.buffer_bytes,
            self.reserved_bytes,
            mode="mbs2",
            batch=self.batch,
            merge_moments=self.merge_moments,
            in_place=self.in_place,
            bytes_per=self.bytes_per,
        )


def run_ends(steps: Steps, next_norm: bool = True) -> list[int]:
    """For each position, one past the last node of the longest run from there that may be a group:
    of one direction, with no more than one layer, and nothing that waits for another member."""
    found = []
    for low in range(len(steps.nodes)):
        shared: set[str] | None = None
        late = False  # something here waits for a reduction of the backward pass
        high = low
        for high in range(low, len(steps.nodes) + 1):
            if high == len(steps.nodes) or (low < steps.backward) != (high < steps.backward):
                break
            node, kind = steps.nodes[high], steps.axis.kinds[steps.nodes[high].name]
            if steps.barrier[high] >= low:
                break
            if node.op in ARRAY_OPS:
                operands = set(steps.reads[high][:2])
                shared = operands if shared is None else shared & operands
                if not shared or (late and not next_norm):
                    break
            elif shared is not None and not next_norm and kind == "merges":
                break
            late = late or (high >= steps.backward and steps.barrier[high] >= 0)
        found.append(max(high, low + 1))
    return found
