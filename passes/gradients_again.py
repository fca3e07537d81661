"""Gradients that are larger than what they are made from, made anew behind a barrier.

before:  %d: float[2, 4, 8, 8] = window_max_grad(%dp, %i) {…}  # pool/grad backward
         %s: accum[4] = reduce(%d, %y) {…}  # norm/grad backward
         %dx: float[2, 4, 8, 8] = map(%d, %y, %s) {…}  # norm/grad.1 backward
after:   %d: float[2, 4, 8, 8] = window_max_grad(%dp, %i) {…}  # pool/grad backward
         %s: accum[4] = reduce(%d, %y) {…}  # norm/grad backward
         %d.again: float[2, 4, 8, 8] = window_max_grad(%dp, %i) {…}  # pool/grad/again backward
         %dx: float[2, 4, 8, 8] = map(%d.again, %y, %s) {…}  # norm/grad.1 backward

The gradient of an exact norm reads its operand for sums over the batch, and again when they are
complete: no sub-batch loop leads across, so the operand is written and read.  Behind a pool that is
several times what the pool's own gradient would be.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ccnn.passes.graph import Graph, Node, Tensor
from ccnn.passes.steps import ElementBytes

SPREADING = ("window_max_grad", "window_sum_grad", "expand")
"""May run again: each of their results depends on few of their operands' elements."""


def gradients_again(graph: Graph, waits: Mapping[str, int], sizes: ElementBytes) -> Graph:
    """The graph with gradients made anew for those who wait, where that moves less.

    waits: node name to the position of the last node of which it needs the results of all samples.
    """
    place = {n.name: k for k, n in enumerate(graph.nodes)}
    nodes: list[Node] = []
    tensors: list[Tensor] = []
    copies: dict[str, tuple[str, int]] = {}
    for k, node in enumerate(graph.nodes):
        behind, inputs = waits.get(node.name, -1), list(node.inputs)
        for at, name in enumerate(inputs):
            maker = graph.producer.get(name)
            if maker is None or place[maker.name] > behind or not _pays(graph, maker, sizes):
                continue
            copy, born = copies.get(name, ("", -1))
            if born <= behind:
                number = sum(n.name.startswith(f"{maker.name}/again") for n in nodes)
                end = "again" + (f".{number}" if number else "")
                copy = f"{name}.{end}"
                copies[name] = copy, k
                tensors.append(replace(graph[name], name=copy))
                nodes.append(replace(maker, name=f"{maker.name}/{end}", outputs=(copy,)))
            inputs[at] = copy
        nodes.append(replace(node, inputs=tuple(inputs)))
    return graph.with_nodes(nodes, tensors) if tensors else graph


def _pays(graph: Graph, node: Node, sizes: ElementBytes) -> bool:
    """Whether to make a gradient twice moves less than to write and read it: what it is made from
    is then written and read, unless it comes from the forward pass and is there."""
    if node.phase != "backward" or node.op not in SPREADING:
        return False

    def size(name: str) -> int:
        return graph[name].size * sizes.of(graph[name].dtype)

    more = 0
    for name in filter(None, node.inputs):
        maker = graph.producer.get(name)
        more += size(name) * (2 if maker is not None and maker.phase == "backward" else 1)
    return more < 2 * size(node.outputs[0])
