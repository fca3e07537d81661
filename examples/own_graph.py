"""The passes on a graph of one's own: no ONNX, no machine, nothing but numpy and networkx.

Builds a small network by hand, derives its training step, adds a pass of its own to the pipeline,
and trains it with the interpreter.

    python examples/own_graph.py
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from ccnn.passes.autodiff import Optimizer, differentiate
from ccnn.passes.graph import Builder, Graph
from ccnn.passes.interpret import after_step, interpret
from ccnn.passes.pipeline import DEFAULT, run_pipeline


@dataclass(frozen=True)
class SoftenRelus:
    """Writes each relu as a leaky relu."""

    name: ClassVar[str] = "soften-relus"
    alpha: float = 0.1

    def __call__(self, graph: Graph) -> Graph:
        """The graph with its relus leaking."""
        return graph.with_nodes(
            [
                replace(n, op="leaky_relu").with_attrs(alpha=self.alpha) if n.op == "relu" else n
                for n in graph.nodes
            ]
        )


def network(batch: int = 8) -> tuple[Graph, str]:
    """A convolution, a relu and a classifier under a cross-entropy; the graph and its loss."""
    rng = np.random.default_rng(0)
    b = Builder("by_hand")
    x = b.input("x", (batch, 1, 8, 8))
    target = b.input("target", (batch,), "index")
    w = b.declare("w", (4, 1, 3, 3), "parameter", data=rng.normal(0, 0.3, (4, 1, 3, 3)))
    v = b.declare("v", (4 * 8 * 8, 2), "parameter", data=rng.normal(0, 0.1, (4 * 8 * 8, 2)))
    y = b.emit("conv", [x, w], strides=(1, 1), pads=(1,) * 4, dilations=(1, 1), group=1)
    y = b.emit("relu", [y])
    y = b.emit("reshape", [y], shape=(batch, 4 * 8 * 8))
    y = b.emit("matmul", [y, v], trans_a=False, trans_b=False)
    loss = b.emit("softmax_cross_entropy", [y, target], reduction="mean")
    return b.build([y, loss]), loss


def main() -> None:
    """Lower the step, print what it consists of, and take twenty steps."""
    graph, loss = network()
    softened = run_pipeline(graph, [SoftenRelus(alpha=0.2)])
    step = differentiate(softened, loss, optimizer=Optimizer("sgd", lr=0.1, momentum=0.9))
    lowered = run_pipeline(step, DEFAULT)
    for node in lowered.nodes:
        print(f"{node.phase:8} {node.op:8} {', '.join(node.outputs)}")

    rng = np.random.default_rng(1)
    target = rng.integers(0, 2, 8)
    images = rng.normal(0, 1, (8, 1, 8, 8)) + target[:, None, None, None]
    values = {"x": images, "target": target}
    losses = []
    for number in range(20):
        found = interpret(lowered, values, step=number)
        losses.append(float(found[loss]))
        values |= after_step(lowered, found)
    print(f"loss {losses[0]:.4f} -> {losses[-1]:.4f}")


if __name__ == "__main__":
    main()
