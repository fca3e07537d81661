"""Pass `share-gradients`: data parallel training, each core with its own part of the mini-batch.

before:  %dw: float[4, 4] = matmul(%x, %dy) {…}  # dw backward
         %w1: float[4, 4] = sgd(%w, %dw) {lr=0.1}  # w/update/sgd update
after:   input %peer1/w: float[4, 4]
         %dw: float[4, 4] = matmul(%x, %dy) {…}  # dw backward
         %shared/w: float[4, 4] = map(%dw, %peer1/w) {exprs=("(a + b) / 2",)}  # w/share update
         %w1: float[4, 4] = sgd(%w, %shared/w) {lr=0.1}  # w/update/sgd update

All cores run the graph at the same time.  A core's own gradients are results, which the others
find in the memory that all share, and what they left there are its inputs.  With a loss that is a
mean over samples, the mean of the cores' gradients is the gradient of the whole mini-batch; batch
norms take statistics of their own core's samples.

A gradient is fetched from another core in a kernel behind the one that made it.  Equal programs on
equal numbers of samples reach the barrier between the two at the same time.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from string import ascii_lowercase
from typing import ClassVar

from ccnn.passes.graph import Builder, Graph, GraphError

MOST_CORES = 16


@dataclass(frozen=True)
class ShareGradients:
    """Updates parameters with the mean of the gradients that several cores computed."""

    name: ClassVar[str] = "share-gradients"
    cores: int = 2

    def __post_init__(self) -> None:
        if not 1 <= self.cores <= MOST_CORES:
            raise GraphError(f"gradients of {self.cores} cores; share those of 1 to {MOST_CORES}")

    def __call__(self, graph: Graph) -> Graph:
        """The graph with inputs for the others' gradients; its own become outputs."""
        trained = {p: g for p, g in graph.gradients.items() if graph[p].role == "parameter"}
        if self.cores == 1 or not trained:
            return graph
        b = Builder(base=replace(graph, nodes=(), groups=()))
        b.phase = "update"
        letters = ascii_lowercase[: self.cores]
        shared = {}
        for parameter, own in trained.items():
            tensor = graph[own]
            peers = [
                b.input(peer(core, parameter), tensor.shape, tensor.dtype)
                for core in range(1, self.cores)
            ]
            b.tensors.setdefault(own, tensor)
            b.origin = graph.producer[own].origin
            shared[own] = b.emit(
                "map",
                [own, *peers],
                name=f"{parameter}/share",
                outputs=(b.fresh(f"shared/{parameter}"),),
                exprs=(f"({' + '.join(letters)}) / {self.cores}",),
                dtypes=(tensor.dtype,),
            )
        before = [node for node in graph.nodes if node.phase != "update"]
        updates = [
            replace(node, inputs=tuple(shared.get(i, i) for i in node.inputs))
            for node in graph.nodes
            if node.phase == "update"
        ]
        b.nodes = [*before, *b.nodes, *updates]
        b.gradients |= {p: shared[g] for p, g in trained.items()}
        return b.build((*graph.outputs, *(g for g in shared if g not in graph.outputs)))


def peer(core: int, parameter: str) -> str:
    """The input that holds another core's gradient of a parameter; the next core is number 1."""
    return f"peer{core}/{parameter}"
