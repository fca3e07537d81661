"""Pass `norm-policy`: what batch norm becomes, so that a step can run in sub-batches.

Batch norm couples all samples of a mini-batch; these two stand-ins do not, but compute something
else, so neither is used unless asked for.  `group` normalises each sample over groups of
channels, as mini-batch serialization does (Lym et al. 2019; Wu and He 2018).  A group has
`channels_per_group` channels, or the largest number below that divides the channels.

before:  %y: float[8, 32, 4, 4], %m, %v, _, _ = batch_norm(%x, %s, %b, %old_m, %old_v)
after:   %y: float[8, 32, 4, 4], _, _ = group_norm(%x, %s, %b) {groups=2}

`ghost` takes batch statistics over `ghost_size` samples at a time (Hoffer et al. 2017): with s
samples side by side, [N, C, …] becomes [N/s, C, s …], of which an instance norm is the ghost norm.

after:   %r = reshape(%x) {shape=(2, 4, 32, 16)}
         %t = transpose(%r) {perm=(0, 2, 1, 3)}
         %n, _, _ = instance_norm(%t, %s, %b)
         %u = transpose(%n) {perm=(0, 2, 1, 3)}
         %y = reshape(%u) {shape=(8, 32, 4, 4)}

`exact` leaves the graph as it is.  Runs on a forward graph, before it is differentiated.  Neither
stand-in has running statistics: that state is dropped.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import ClassVar, Literal

from ccnn.passes.graph import Builder, Graph, GraphError, Node


@dataclass(frozen=True)
class NormPolicy:
    """Replaces batch norms by group norms or ghost norms; `exact` keeps them."""

    name: ClassVar[str] = "norm-policy"
    norm: Literal["exact", "group", "ghost"] = "group"
    channels_per_group: int = 16
    ghost_size: int = 4
    """Samples that share statistics under `ghost`; must divide the batch."""

    def __post_init__(self) -> None:
        if self.norm not in ("exact", "group", "ghost"):
            raise GraphError(f"norm '{self.norm}' is none of exact, group, ghost")
        for name in ("channels_per_group", "ghost_size"):
            if getattr(self, name) < 1:
                raise GraphError(f"{name} = {getattr(self, name)} must be at least 1")

    def __call__(self, graph: Graph) -> Graph:
        """The graph without batch norms; raises GraphError on one that is differentiated."""
        norms = [n for n in graph.nodes if n.op == "batch_norm"]
        if self.norm == "exact" or not norms:
            return graph
        if graph.gradients or any(n.op == "batch_norm_grad" for n in graph.nodes):
            raise GraphError(
                f"norm '{self.norm}' changes what the network computes, so it must be applied "
                "before the graph is differentiated"
            )
        return _drop_unused_state(self._replace(graph), graph)

    def _replace(self, graph: Graph) -> Graph:
        norms = {n.name for n in graph.nodes if n.op == "batch_norm"}
        results = {o for n in graph.nodes if n.name in norms for o in n.outputs}
        others = tuple(n for n in graph.nodes if n.name not in norms)
        rest = {k: t for k, t in graph.tensors.items() if k not in results}
        b = Builder(base=replace(graph, nodes=others, tensors=rest))
        b.nodes = []
        for node in graph.nodes:
            if node.name not in norms:
                b.nodes.append(node)
                continue
            _check_statistics_unused(graph, node)
            b.origin, b.phase = node.origin, node.phase
            write = self._group if self.norm == "group" else self._ghost
            write(b, node)
        whole = b.build()
        return whole.with_nodes(whole.nodes)

    def _group(self, b: Builder, node: Node) -> None:
        x, scale, bias = node.inputs[:3]
        (y, *_), shape = node.outputs, b.shape(x)
        size = max(d for d in range(1, self.channels_per_group + 1) if shape[1] % d == 0)
        flat = len(shape) == 2
        if flat:
            x = b.emit("reshape", [x], name=f"{node.name}/image", shape=(*shape, 1))
        image = f"{y}.image" if flat else y
        b.emit(
            "group_norm",
            [x, scale, bias],
            name=node.name,
            outputs=_named(image),
            groups=shape[1] // size,
            epsilon=float(node.attr("epsilon", 1e-5)),
        )
        if flat:
            b.emit("reshape", [image], name=f"{node.name}/flat", outputs=[y], shape=shape)

    def _ghost(self, b: Builder, node: Node) -> None:
        x, scale, bias = node.inputs[:3]
        (y, *_), shape, size, name = node.outputs, b.shape(x), self.ghost_size, node.name
        if shape[0] % size:
            raise GraphError(
                f"node '{name}': a batch of {shape[0]} does not divide into ghost batches of "
                f"{size}; choose a ghost_size that divides it"
            )
        split, turn = (shape[0] // size, size, shape[1], prod(shape[2:])), (0, 2, 1, 3)
        x = b.emit("reshape", [x], name=f"{name}/split", shape=split)
        x = b.emit("transpose", [x], name=f"{name}/turn", perm=turn)
        epsilon = float(node.attr("epsilon", 1e-5))
        x = b.emit("instance_norm", [x, scale, bias], name=f"{name}/norm", epsilon=epsilon)
        x = b.emit("transpose", [x], name=f"{name}/turn_back", perm=turn)
        b.emit("reshape", [x], name=f"{name}/join", outputs=[y], shape=shape)


def _named(y: str) -> tuple[str, str, str]:
    """Names for the results of a group norm."""
    return y, f"{y}.mean", f"{y}.istd"


def _check_statistics_unused(graph: Graph, node: Node) -> None:
    for result in filter(None, node.outputs[1:]):
        if graph.consumers[result] or result in graph.outputs:
            raise GraphError(
                f"the statistics '{result}' of node '{node.name}' are used; a norm that has none "
                "cannot take its place: keep norm 'exact'"
            )


def _drop_unused_state(graph: Graph, before: Graph) -> Graph:
    """Without the running statistics that only the batch norms read."""
    used = {i for n in graph.nodes for i in n.inputs} | graph.needed
    was = {i for n in before.nodes if n.op == "batch_norm" for i in n.inputs[3:]}
    gone = was - used
    updates = {k: v for k, v in graph.updates.items() if k not in gone}
    return replace(
        graph,
        tensors={k: t for k, t in graph.tensors.items() if k not in gone},
        data={k: v for k, v in graph.data.items() if k not in gone},
        updates=updates,
    )
