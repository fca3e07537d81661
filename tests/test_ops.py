"""Every op of OPS: shapes, expansion and gradient agree with its plain numpy reference."""

from __future__ import annotations

import zlib

import numpy as np
import op_cases
import pytest

from ccnn.passes.autodiff import differentiate
from ccnn.passes.expand import expand
from ccnn.passes.graph import Builder, Graph, GraphError
from ccnn.passes.interpret import interpret
from ccnn.passes.ops import OPS, op_named
from ccnn.passes.ops.map_reduce import uniform
from ccnn.passes.pipeline import run_pipeline
from ccnn.targets.simulator.uniform import uniform as vector_uniform

CASES = op_cases.CASES


def build(case) -> tuple[Graph, dict[str, np.ndarray]]:
    """A graph of the case alone, and values for its inputs."""
    rng = np.random.default_rng(zlib.crc32(str(case).encode()))
    b = Builder("case")
    names, values = [], {}
    for k, shape in enumerate(case.shapes):
        if shape == "":
            names.append("")
            continue
        whole = isinstance(shape, op_cases.Index)
        name = b.input(f"x{k}", shape.shape if whole else shape, "index" if whole else "float")
        names.append(name)
        if whole:
            values[name] = rng.integers(0, shape.high, shape.shape)
        elif case.positive:
            values[name] = rng.uniform(0.5, 2, shape)
        else:
            values[name] = rng.standard_normal(shape)
    outputs = b.emit_all(case.op, names, **case.attrs)
    return b.build(outputs), values


def test_every_op_has_a_case():
    assert set(OPS) == {case.op for case in CASES}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_reference_has_the_shapes_that_infer_says(case):
    graph, values = build(case)
    node = graph.nodes[0]
    results = op_named(node.op).reference(node, [values[i] if i else None for i in node.inputs])
    assert [np.shape(r) for r in results] == [graph[o].shape for o in node.outputs]


@pytest.mark.parametrize(
    "case", [c for c in CASES if not OPS[c.op].primitive or c.op == "pad"], ids=str
)
def test_expansion_agrees_with_reference(case):
    graph, values = build(case)
    expanded = expand(graph)
    assert all(op_named(n.op).is_primitive(n) for n in expanded.nodes)
    expected, got = interpret(graph, values), interpret(expanded, values)
    for name in graph.outputs:
        np.testing.assert_allclose(got[name], expected[name], rtol=1e-9, atol=1e-12)


def weighted_loss(graph: Graph, values: dict[str, np.ndarray]) -> tuple[Graph, str]:
    """The case followed by a fixed random weighting of its differentiable results."""
    b = Builder(base=graph)
    rng = np.random.default_rng(3)
    terms = []
    for name in graph.outputs[: differentiable_results(graph)]:
        shape = b.shape(name)
        weight = b.declare(f"weight/{name}", shape, "constant", "float", rng.standard_normal(shape))
        product = b.emit("mul", [name, weight])
        axes = tuple(range(len(shape)))
        terms.append(
            b.emit("reduce_sum", [product], axes=axes, keepdims=False) if axes else product
        )
    total = terms[0]
    for term in terms[1:]:
        total = b.emit("add", [total, term])
    return b.build([total]), total


def differentiable_results(graph: Graph) -> int:
    """How many results have a gradient: the rest serve the backward pass or are state."""
    node = graph.nodes[0]
    return 2 if node.attr("log_prob", False) else 1


@pytest.mark.parametrize("case", [c for c in CASES if c.gradient], ids=str)
def test_gradient_agrees_with_central_differences(case):
    graph, values = build(case)
    whole, loss = weighted_loss(graph, values)
    skipped = {"batch_norm": 3, "where": 0, "softmax_cross_entropy": 1}.get(case.op)
    wanted = [n for n in values if whole[n].dtype == "float"]
    if case.op == "batch_norm":
        wanted = wanted[:skipped]
    if case.op == "where":
        wanted = wanted[1:]
    if case.op == "softmax_cross_entropy":
        wanted = wanted[:1]
    trained = differentiate(whole, loss, input_gradients=wanted)
    got = interpret(trained, values)
    for name in wanted:
        grad = got[trained.gradients[name]]
        direction = np.random.default_rng(11).standard_normal(grad.shape)
        step = 1e-6
        up, down = (
            interpret(whole, {**values, name: values[name] + s * step * direction})[loss]
            for s in (1, -1)
        )
        slope = (up - down) / (2 * step)
        assert np.sum(grad * direction) == pytest.approx(slope, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("case", [c for c in CASES if c.gradient], ids=str)
def test_pipeline_keeps_gradients(case):
    graph, values = build(case)
    whole, loss = weighted_loss(graph, values)
    trained = differentiate(whole, loss, input_gradients=["x1" if case.op == "where" else "x0"])
    lowered = run_pipeline(trained)
    expected, got = interpret(trained, values), interpret(lowered, values)
    for name in trained.needed:
        np.testing.assert_allclose(got[name], expected[name], rtol=1e-9, atol=1e-12)


def test_unwanted_gradients_cost_nothing():
    b = Builder()
    x, w = b.input("x", (1, 2, 5, 5)), b.input("w", (3, 2, 3, 3))
    y = b.emit("conv", [x, w], **op_cases.conv())
    loss = b.emit("reduce_sum", [y], axes=(0, 1, 2, 3), keepdims=False)
    ops = {n.op for n in differentiate(b.build([y]), loss, input_gradients=["w"]).nodes}
    assert "conv_dw" in ops
    assert "conv_dx" not in ops


def test_ties_of_max_pool_go_to_the_first():
    b = Builder()
    x = b.input("x", (1, 1, 2, 2))
    y = b.emit("max_pool", [x], **op_cases.pool((2, 2), (2, 2), (0, 0, 0, 0)))
    loss = b.emit("reduce_sum", [y], axes=(0, 1, 2, 3), keepdims=False)
    trained = differentiate(b.build([y]), loss, input_gradients=["x"])
    values = {"x": np.array([[[[1.0, 3.0], [3.0, 3.0]]]])}
    grad = interpret(trained, values)[trained.gradients["x"]]
    assert grad.tolist() == [[[[0.0, 1.0], [0.0, 0.0]]]]


@pytest.mark.parametrize(
    ("op", "at", "expected"),
    [("relu", 0.0, 0.0), ("clip", 6.0, 0.0), ("abs", 0.0, 0.0), ("reduce_max", 2.0, 0.5)],
)
def test_gradient_on_the_kink(op, at, expected):
    b = Builder()
    x = b.input("x", (2,))
    attrs = {"clip": {"min": 0.0, "max": 6.0}, "reduce_max": {"axes": (0,), "keepdims": False}}
    y = b.emit(op, [x], **attrs.get(op, {}))
    if op != "reduce_max":
        y = b.emit("reduce_sum", [y], axes=(0,), keepdims=False)
    trained = differentiate(b.build([y]), y, input_gradients=["x"])
    grad = interpret(trained, {"x": np.array([at, at])})[trained.gradients["x"]]
    assert grad.tolist() == [expected, expected]


def test_padding_never_wins_a_maximum():
    b = Builder()
    x = b.input("x", (1, 1, 1, 1))
    attrs = op_cases.pool((2, 2), (1, 1), (1, 1, 0, 0))
    y, idx = b.emit_all("max_pool", [x], **attrs)
    results = interpret(b.build([y, idx]), {"x": np.full((1, 1, 1, 1), -np.inf)})
    assert results[y].item() == -np.inf
    assert results[idx].item() == 3


@pytest.mark.parametrize(("seed", "step"), [(0, 0), (7, 3), (2**63, 1)])
def test_random_numbers_are_those_of_the_vector_unit(seed, step):
    ours, theirs = uniform(seed, step, 5, 1000), vector_uniform(seed, step, 5, 1000)
    assert ours.tolist() == theirs.tolist()
    assert 0.4 < ours.mean() < 0.6
    assert uniform(seed, step + 1, 5, 1000).tolist() != ours.tolist()


def test_unknown_op_names_its_neighbours():
    with pytest.raises(GraphError, match="did you mean leaky_relu"):
        op_named("leaky_rellu")


@pytest.mark.parametrize(
    ("op", "shapes", "attrs", "message"),
    [
        ("conv", ((1, 3, 4, 4), (2, 4, 3, 3)), op_cases.conv(), "x has 3 channels"),
        ("conv", ((1, 3, 2, 2), (2, 3, 3, 3)), op_cases.conv(), "does not fit the padded image"),
        ("matmul", ((2, 3), (4, 5)), {}, "a .2, 3. has K = 3"),
        ("add", ((2, 3), (2, 4)), {}, "do not broadcast"),
        ("reshape", ((2, 3),), {"shape": (7,)}, "does not hold the 6 elements"),
        ("slice", ((4,),), {"starts": (2,), "steps": (1,), "sizes": (3,)}, "axis 0 of size 4"),
        ("softmax", ((4,),), {"axis": 2}, "is not an axis"),
        ("map", ((4,),), {"exprs": ("a + b",), "dtypes": ("float",)}, "more operands"),
        ("relu", ((4,), (4,)), {}, "takes 1 inputs"),
        ("batch_norm", ((1, 3), *[(3,)] * 4), {"unbiased": True}, "use a larger batch"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(op, shapes, attrs, message):
    b = Builder()
    names = [b.input(f"x{k}", s) for k, s in enumerate(shapes)]
    with pytest.raises(GraphError, match=message):
        b.emit(op, names, **attrs)
