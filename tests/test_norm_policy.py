"""Norm policies against norms written out with numpy, and the errors that keep them apart."""

from __future__ import annotations

import numpy as np
import pytest

from ccnn.passes.autodiff import Optimizer, differentiate
from ccnn.passes.check import verify
from ccnn.passes.graph import Builder, Graph, GraphError
from ccnn.passes.interpret import interpret
from ccnn.passes.norm_policy import NormPolicy
from ccnn.passes.pipeline import run_pipeline


def normed(shape: tuple[int, ...], read_statistics: bool = False) -> tuple[Graph, str]:
    """x -> batch norm -> relu, and a loss over it."""
    rng = np.random.default_rng(3)
    b = Builder("normed")
    x, channels = b.input("x", shape), shape[1:2]
    scale, bias = (
        b.declare(n, channels, "parameter", data=rng.uniform(0.5, 2, channels)) for n in ("s", "b")
    )
    mean, var = (b.declare(n, channels, "state", data=np.ones(channels)) for n in ("m", "v"))
    y, seen, *_ = b.emit_all("batch_norm", [x, scale, bias, mean, var], name="bn", momentum=0.9)
    z = b.emit("relu", [y], name="relu")
    weighted = b.emit("mul", [z, b.emit("sigmoid", [z])])
    loss = b.emit("reduce_mean", [weighted], axes=tuple(range(len(shape))), keepdims=False)
    return b.build([y, seen] if read_statistics else [y]), loss


def normalised(x: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    return (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + 1e-5)


def expected(policy: NormPolicy, x: np.ndarray, scale: np.ndarray, bias: np.ndarray) -> np.ndarray:
    n, c, *image = x.shape
    if policy.norm == "ghost":
        size = policy.ghost_size
        parts = x.reshape(n // size, size, c, -1)
        plain = normalised(parts, (1, 3)).reshape(x.shape)
    else:
        size = max(d for d in range(1, policy.channels_per_group + 1) if c % d == 0)
        plain = normalised(x.reshape(n, c // size, -1), (2,)).reshape(x.shape)
    column = (c, *[1] * len(image))
    return plain * scale.reshape(column) + bias.reshape(column)


POLICIES = (NormPolicy(), NormPolicy("group", 4), NormPolicy("ghost", 1, 2))


@pytest.mark.parametrize("shape", [(4, 32, 3, 3), (4, 20, 5), (6, 7, 2, 2), (4, 32)])
@pytest.mark.parametrize("policy", POLICIES)
def test_values_are_those_of_the_norm_asked_for(policy, shape):
    graph, _ = normed(shape)
    after = policy(graph)
    verify(after)
    x = np.random.default_rng(0).standard_normal(shape) + 3
    got = interpret(after, {"x": x})
    want = expected(policy, x, graph.data["s"], graph.data["b"])
    np.testing.assert_allclose(got[graph.outputs[0]], want, rtol=1e-9, atol=1e-9)
    assert {"m", "v"}.isdisjoint(after.tensors)
    assert {"m", "v"}.isdisjoint(after.data)


@pytest.mark.parametrize("policy", [NormPolicy(), NormPolicy("ghost", 1, 2)])
def test_gradients_agree_with_central_differences(policy):
    graph, loss = normed((4, 6, 2, 2))
    step = differentiate(policy(graph), loss, input_gradients=["x"], optimizer=Optimizer())
    verify(step)
    lowered = run_pipeline(step)
    x = np.random.default_rng(1).standard_normal((4, 6, 2, 2))
    got = interpret(lowered, {"x": x}, keep=lowered.needed)
    for name, value in (("x", x), ("s", graph.data["s"])):
        for place in list(np.ndindex(value.shape))[::7]:
            moved = value.copy()
            losses = []
            for change in (1e-5, -1e-5):
                moved[place] = value[place] + change
                losses.append(interpret(step, {"x": x, name: moved})[loss])
            slope = (losses[0] - losses[1]) / 2e-5
            assert got[step.gradients[name]][place] == pytest.approx(slope, rel=1e-5, abs=1e-8)


def test_exact_keeps_the_graph_and_so_does_one_without_batch_norm():
    graph, _ = normed((2, 3, 4))
    assert NormPolicy("exact")(graph) is graph
    grouped = NormPolicy()(graph)
    assert NormPolicy("ghost")(grouped) is grouped


def test_what_cannot_be_replaced_is_refused():
    graph, loss = normed((4, 3, 4))
    with pytest.raises(GraphError, match="ghost batches of 3"):
        NormPolicy("ghost", ghost_size=3)(graph)
    with pytest.raises(GraphError, match="before the graph is differentiated"):
        NormPolicy()(differentiate(graph, loss))
    with pytest.raises(GraphError, match="the statistics"):
        NormPolicy()(normed((4, 3, 4), read_statistics=True)[0])
    with pytest.raises(GraphError, match="is none of exact, group, ghost"):
        NormPolicy("batch")  # pyright: ignore[reportArgumentType]
    with pytest.raises(GraphError, match="must be at least 1"):
        NormPolicy("group", 0)
