"""What the analysis claims about a node must hold when the node runs on part of the batch."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ccnn.passes.autodiff import Optimizer, differentiate
from ccnn.passes.batch_axis import BatchAxis, batch_axis, batch_size
from ccnn.passes.graph import Builder, Graph, GraphError, Node
from ccnn.passes.interpret import interpret
from ccnn.passes.norm_policy import NormPolicy
from ccnn.passes.ops import op_named
from ccnn.passes.pipeline import run_pipeline

BATCH = 8


def network(policy: NormPolicy) -> Graph:
    """A training step with convolutions, norms, a shortcut, pools, a concatenation and a loss."""
    rng = np.random.default_rng(0)
    b = Builder("network")

    def parameter(*shape: int) -> str:
        return b.declare(b.fresh("p"), shape, "parameter", data=rng.uniform(-1, 1, shape))

    def conv(x: str, k: int, size: int, stride: int = 1) -> str:
        pads, w = (size // 2,) * 4, parameter(k, b.shape(x)[1], size, size)
        ones = (1, 1)
        return b.emit("conv", [x, w], strides=(stride, stride), pads=pads, dilations=ones, group=1)

    def norm(x: str) -> str:
        c = b.shape(x)[1]
        state = [b.declare(b.fresh("s"), (c,), "state", data=np.ones(c)) for _ in range(2)]
        return b.emit("batch_norm", [x, parameter(c), parameter(c), *state], momentum=0.9)

    x, target = b.input("x", (BATCH, 3, 8, 8)), b.input("target", (BATCH,), "index")
    x = b.emit("relu", [norm(conv(x, 4, 3))])
    window = {"kernel": (3, 3), "strides": (2, 2), "pads": (1, 1, 1, 1), "dilations": (1, 1)}
    x = b.emit_all("max_pool", [x], **window)[0]
    y = norm(conv(b.emit("relu", [norm(conv(x, 4, 3))]), 4, 1))
    x = b.emit("relu", [b.emit("add", [x, y])])
    x = b.emit("concat", [x, conv(x, 2, 3)], axis=1)
    x = b.emit("avg_pool", [x], ceil_extra=(0, 0), count_include_pad=True, **window)
    x = b.emit("softmax", [b.emit("reshape", [x], shape=(BATCH, 24))], axis=1)
    y = b.emit("matmul", [x, parameter(5, 24), parameter(5)], trans_a=False, trans_b=True)
    loss = b.emit("softmax_cross_entropy", [y, target], reduction="mean")
    graph = policy(b.build([y]))
    return run_pipeline(differentiate(graph, loss, optimizer=Optimizer(momentum=0.9)))


def part(axis: BatchAxis, name: str, value: np.ndarray, low: int, high: int) -> np.ndarray:
    """The rows of some samples, if the tensor has any."""
    rows = axis.rows.get(name)
    return value if rows is None else value[int(low * rows) : int(high * rows)]


def on_part(graph: Graph, node: Node, axis: BatchAxis) -> Node:
    """The node as it runs on half of the batch."""
    if node.outputs[0] not in axis.rows:
        return node
    changed = {k: v for k, v in node.attributes.items() if k in ("shape", "sizes")}
    return node.with_attrs(**{k: (v[0] // 2, *v[1:]) for k, v in changed.items()})


@pytest.mark.parametrize("policy", [NormPolicy(n, 2, 4) for n in ("exact", "group", "ghost")])
def test_nodes_run_on_half_of_the_batch_as_claimed(policy):
    graph = network(policy)
    axis = batch_axis(graph)
    assert axis.batch == BATCH
    assert axis.grain == (4 if policy.norm == "ghost" else 1)
    rng = np.random.default_rng(1)
    values = {"x": rng.standard_normal((BATCH, 3, 8, 8)), "target": rng.integers(0, 5, BATCH)}
    known = interpret(graph, values)
    seen = set()
    for node in graph.nodes:
        kind = axis.kinds[node.name]
        seen.add(kind)
        if kind not in ("keeps", "sums"):
            continue
        halves = []
        for low, high in ((0, BATCH // 2), (BATCH // 2, BATCH)):
            inputs = [part(axis, i, known[i], low, high) for i in node.inputs]
            halves.append(op_named(node.op).reference(on_part(graph, node, axis), inputs))
        for out, first, second in zip(node.outputs, *halves, strict=True):
            joined = np.concatenate([first, second]) if kind == "keeps" else first + second
            np.testing.assert_allclose(joined, known[out], rtol=1e-9, atol=1e-12)
            assert (out in axis.rows) == (kind == "keeps")
    assert seen == {"keeps", "sums", "free"} | ({"merges"} if policy.norm == "exact" else set())


def test_free_nodes_read_nothing_batched():
    graph = network(NormPolicy("exact"))
    axis = batch_axis(graph)
    for node in graph.nodes:
        if axis.kinds[node.name] == "free":
            assert not any(i in axis.rows for i in node.inputs)


@pytest.mark.parametrize(
    ("op", "attrs", "kind"),
    [
        ("transpose", {"perm": (1, 0, 2)}, "mixes"),
        ("transpose", {"perm": (0, 2, 1)}, "keeps"),
        ("slice", {"starts": (0, 0, 0), "steps": (1, 1, 1), "sizes": (2, 6, 6)}, "mixes"),
        ("slice", {"starts": (3, 0, 0), "steps": (-1, 1, 1), "sizes": (4, 6, 6)}, "mixes"),
        ("slice", {"starts": (0, 2, 0), "steps": (1, 1, 1), "sizes": (4, 2, 6)}, "keeps"),
        ("reshape", {"shape": (2, 2, 36)}, "keeps"),
        ("reshape", {"shape": (3, 48)}, "mixes"),
        ("reshape", {"shape": (24, 6)}, "keeps"),
        ("matmul", {"trans_a": False, "trans_b": False}, "mixes"),
        ("moments", {"axes": (0,)}, "merges"),
        ("moments", {"axes": (2,)}, "keeps"),
        ("reduce", {"kind": "max", "exprs": ("a",), "axes": (0,), "dtypes": ("float",)}, "sums"),
    ],
)
def test_single_nodes(op, attrs, kind):
    b = Builder()
    x = b.input("x", (4, 6, 6))
    inputs = [b.declare("w", (4, 6, 6), "parameter"), x] if op == "matmul" else [x]
    b.emit_all(op, inputs, name="n", **attrs)
    assert batch_axis(b.build([])).kinds["n"] == kind


def test_numbers_drawn_by_position_are_drawn_whole_and_read_by_sample():
    b = Builder()
    x = b.input("x", (4, 6))
    drawn = b.emit("random", [], name="drawn", shape=(4, 6), seed=1)
    y = b.emit("map", [x, drawn], name="y", exprs=("a * b",), dtypes=("float",))
    axis = batch_axis(b.build([y]))
    assert axis.kinds == {"drawn": "mixes", "y": "keeps"}
    assert axis.rows["drawn"] == 1


def test_a_graph_without_inputs_has_no_batch():
    b = Builder("empty")
    with pytest.raises(GraphError, match="has no input with a batch dimension"):
        batch_size(b.build([]))
    scalar = replace(b.build([]), tensors={})
    with pytest.raises(GraphError, match="'empty'"):
        batch_axis(scalar)
