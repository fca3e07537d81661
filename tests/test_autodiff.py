"""Differentiation of whole graphs: chaining, sums, freezing, state and optimizers."""

from __future__ import annotations

import numpy as np
import pytest

from ccnn.passes.autodiff import Optimizer, differentiate
from ccnn.passes.check import verify
from ccnn.passes.graph import Builder, Graph, GraphError
from ccnn.passes.interpret import after_step, interpret
from ccnn.passes.pipeline import run_pipeline
from ccnn.passes.text import parse_graph

CONV = {"strides": (1, 1), "pads": (1, 1, 1, 1), "dilations": (1, 1), "group": 1}
RNG = np.random.default_rng(5)
IMAGE, TARGET = RNG.standard_normal((2, 2, 6, 6)), np.array([1, 2])
VALUES = {"x": IMAGE, "target": TARGET}


def residual_net() -> tuple[Graph, str]:
    """conv, norm, relu, a residual block with a shared weight, pooling and a classifier."""
    b, rng = Builder("net"), np.random.default_rng(1)

    def parameter(name: str, *shape: int) -> str:
        return b.declare(name, shape, "parameter", data=0.5 * rng.standard_normal(shape))

    def norm(x: str, name: str) -> str:
        stats = [b.declare(f"{name}.{k}", (3,), "state", data=np.full(3, float(k))) for k in (0, 1)]
        both = [parameter(f"{name}.scale", 3), parameter(f"{name}.bias", 3)]
        return b.emit("batch_norm", [x, *both, *stats], momentum=0.9, epsilon=1e-5, unbiased=True)

    x, target = b.input("x", (2, 2, 6, 6)), b.input("target", (2,), "index")
    y = b.emit("relu", [norm(b.emit("conv", [x, parameter("w0", 3, 2, 3, 3)], **CONV), "bn0")])
    shared = parameter("w1", 3, 3, 3, 3)
    z = b.emit("leaky_relu", [norm(b.emit("conv", [y, shared], **CONV), "bn1")], alpha=0.1)
    z = norm(b.emit("conv", [z, shared], **CONV), "bn2")
    y = b.emit("relu", [b.emit("add", [z, y])])
    y = b.emit("avg_pool", [y], kernel=(2, 2), strides=(2, 2), pads=(0,) * 4, dilations=(1, 1))
    y = b.emit("reduce_mean", [y], axes=(2, 3), keepdims=False)
    y = b.emit("matmul", [y, parameter("fc.w", 4, 3), parameter("fc.b", 4)], trans_b=True)
    parameter("unused", 3)
    loss = b.emit("softmax_cross_entropy", [y, target], reduction="mean")
    return b.build([y]), loss


def test_gradients_of_a_whole_net_against_central_differences():
    graph, loss = residual_net()
    trained = differentiate(graph, loss, input_gradients=["x"])
    verify(trained)
    got = interpret(trained, VALUES)
    norms = {f"bn{k}.{p}" for k in range(3) for p in ("scale", "bias")}
    assert set(trained.gradients) == {"x", "w0", "w1", "fc.w", "fc.b"} | norms
    start = {**graph.data, **VALUES}
    for name, grad in trained.gradients.items():
        direction = np.random.default_rng(2).standard_normal(graph[name].shape)
        up, down = (
            interpret(graph, {**VALUES, name: start[name] + s * 1e-6 * direction})[loss]
            for s in (1, -1)
        )
        slope = (up - down) / 2e-6
        assert np.sum(got[grad] * direction) == pytest.approx(slope, rel=1e-5, abs=1e-7), name


def test_the_pipeline_keeps_every_result():
    graph, loss = residual_net()
    trained = differentiate(graph, loss, optimizer=Optimizer(momentum=0.9, weight_decay=1e-3))
    lowered = run_pipeline(trained)
    expected, got = interpret(trained, VALUES), interpret(lowered, VALUES)
    assert trained.needed == lowered.needed
    for name in trained.needed:
        np.testing.assert_allclose(got[name], expected[name], rtol=1e-9, atol=1e-12)


def test_running_statistics_are_updated():
    graph, loss = residual_net()
    trained = differentiate(graph, loss)
    results = interpret(trained, VALUES)
    y = interpret(graph, VALUES)["conv"]
    wanted = 0.9 * 1 + 0.1 * y.var(axis=(0, 2, 3), ddof=1)
    np.testing.assert_allclose(results[trained.updates["bn0.1"]], wanted)
    assert set(trained.updates) == {f"bn{k}.{s}" for k in range(3) for s in (0, 1)}


def test_a_state_used_twice_is_updated_in_turn():
    b = Builder()
    x = b.input("x", (4, 1))
    p = [b.declare(n, (1,), "parameter", data=np.ones(1)) for n in ("s", "o")]
    state = [b.declare(n, (1,), "state", data=np.zeros(1)) for n in ("mean", "var")]
    y = b.emit("batch_norm", [x, *p, *state], momentum=0.5)
    y = b.emit("batch_norm", [b.emit("mul", [x, x]), *p, *state], momentum=0.5)
    loss = b.emit("reduce_sum", [b.emit("mul", [y, y])], axes=(0, 1), keepdims=False)
    trained = differentiate(b.build([]), loss)
    x_value = np.array([[1.0], [2.0], [3.0], [4.0]])
    results = interpret(trained, {"x": x_value})
    once = 0.5 * x_value.mean()
    assert results[trained.updates["mean"]] == pytest.approx(0.5 * once + 0.5 * (x_value**2).mean())


def test_frozen_parameters_have_no_gradient_and_cost_nothing():
    graph, loss = residual_net()
    trained = differentiate(graph, loss, frozen=["w*", "bn*"])
    assert set(trained.gradients) == {"fc.w", "fc.b"}
    assert not {n.op for n in trained.nodes} & {"conv_dw", "conv_dx", "batch_norm_grad"}
    first = differentiate(graph, loss)
    assert sum(n.op == "conv_dx" for n in first.nodes) == 2  # the first layer needs no dX


def step_values(kind: str, **options) -> tuple[list[np.ndarray], np.ndarray]:
    """Three steps of an optimizer on the loss sum(w * g): the weights after each, and g."""
    b = Builder()
    g = b.input("g", (3,))
    w = b.declare("w", (3,), "parameter", data=np.array([1.0, -2.0, 0.5]))
    loss = b.emit("reduce_sum", [b.emit("mul", [w, g])], axes=(0,), keepdims=False)
    graph = differentiate(b.build([]), loss, optimizer=Optimizer(kind, **options))
    graph = run_pipeline(graph)
    gradient, carried, seen = np.array([0.3, -0.1, 2.0]), {}, []
    for _ in range(3):
        carried = after_step(graph, interpret(graph, {"g": gradient, **carried}))
        seen.append(carried["w"])
    return seen, gradient


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_follows_its_definition(nesterov):
    seen, g = step_values("sgd", lr=0.1, momentum=0.9, weight_decay=0.01, nesterov=nesterov)
    w, v = np.array([1.0, -2.0, 0.5]), np.zeros(3)
    for got in seen:
        d = g + 0.01 * w
        v = 0.9 * v + d
        w = w - 0.1 * (d + 0.9 * v if nesterov else v)
        np.testing.assert_allclose(got, w, rtol=1e-12)


@pytest.mark.parametrize("kind", ["adam", "adamw"])
def test_adam_follows_its_definition(kind):
    seen, g = step_values(kind, lr=0.1, weight_decay=0.01)
    w, m, v = np.array([1.0, -2.0, 0.5]), np.zeros(3), np.zeros(3)
    for t, got in enumerate(seen, 1):
        d = g + (0.01 * w if kind == "adam" else 0)
        w = w - (0.1 * 0.01 * w if kind == "adamw" else 0)
        m, v = 0.9 * m + 0.1 * d, 0.999 * v + 0.001 * d * d
        w = w - 0.1 * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        np.testing.assert_allclose(got, w, rtol=1e-9)


def test_work_that_leads_nowhere_is_dropped():
    graph, loss = residual_net()
    b = Builder(base=graph)
    dead = b.emit("exp", ["x"])
    kept = b.emit("log", ["x"])
    trained = differentiate(b.build([*graph.outputs, kept]), loss)
    assert dead not in trained.tensors
    assert kept in trained.tensors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "nothing"}, "is no tensor of the graph"),
        ({"loss": "conv"}, "must be one number"),
        ({"wanted": ["x"]}, "is no parameter"),
        ({"wanted": ["unused"]}, "'unused' does not influence the loss"),
        ({"frozen": ["fc", "nothing*"]}, "freezes nothing"),
        ({"input_gradients": ["conv"]}, "no input"),
    ],
)
def test_bad_requests_are_explained(options, message):
    graph, loss = residual_net()
    with pytest.raises(GraphError, match=message):
        differentiate(graph, **{"loss": loss, **options})


@pytest.mark.parametrize(
    "options", [{"kind": "lion"}, {"lr": -1.0}, {"lr": float("nan")}, {"nesterov": True}]
)
def test_bad_optimizers_are_refused(options):
    with pytest.raises(GraphError):
        Optimizer(**options)


@pytest.mark.parametrize(
    ("named", "absent"),
    [
        ("%loss: accum[], %lse: accum[4, 1] = softmax", "%loss: accum[], _ = softmax"),
        ("%d: float[4, 3], %mask: bytes[4, 3] = drop", "%d: float[4, 3], _ = drop"),
    ],
)
def test_results_that_a_gradient_reads_need_no_name(named, absent):
    text = """graph by_hand
input %x: float[4, 8]
input %target: index[4]
parameter %w: float[3, 8]
%scores: float[4, 3] = matmul(%x, %w) {trans_a=False, trans_b=True}  # fc forward
%d: float[4, 3], %mask: bytes[4, 3] = dropout(%scores) {ratio=0.5}  # drop forward
%loss: accum[], %lse: accum[4, 1] = softmax_cross_entropy(%d, %target)  # ce loss
output %loss
"""
    rng = np.random.default_rng(0)
    values = {"x": rng.standard_normal((4, 8)), "target": np.array([0, 2, 1, 1])}
    values["w"] = rng.standard_normal((3, 8))
    assert named in text
    found = []
    for each in (text, text.replace(named, absent)):
        step = differentiate(parse_graph(each), "loss")
        verify(step)
        found.append(interpret(step, values)[step.gradients["w"]])
    assert np.abs(found[0]).max() > 0
    np.testing.assert_array_equal(*found)


def test_interpreter_frees_and_checks():
    graph, loss = residual_net()
    assert set(interpret(graph, VALUES, keep=[loss])) == {loss}
    assert interpret(graph, VALUES, np.float32)[loss].dtype == np.float32
    with pytest.raises(GraphError, match=r"input 'target' \(2,\) has no value"):
        interpret(graph, {"x": IMAGE})
    with pytest.raises(GraphError, match="'x' has shape"):
        interpret(graph, {**VALUES, "x": IMAGE[:1]})
    with pytest.raises(GraphError, match="no tensor of the graph"):
        interpret(graph, {**VALUES, "y": IMAGE})
