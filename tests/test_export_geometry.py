"""Exported convolutions and windows of any geometry, in onnxruntime against the interpreter."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from test_export import exported, rounded, run

from ccnn.passes.graph import Builder, Graph, GraphError
from ccnn.passes.interpret import interpret

pair = st.tuples(st.integers(1, 3), st.integers(1, 3))
few = settings(max_examples=150, deadline=None, derandomize=True)


def agree(graph: Graph, values: dict[str, np.ndarray]) -> None:
    values = rounded(values)
    expected, got = interpret(graph, values), run(exported(graph), values)
    for k, name in enumerate(graph.outputs):
        assert got[f"y{k}"].shape == expected[name].shape
        finite = np.isfinite(expected[name])  # a window of nothing but padding has maximum -inf
        scale = max(1.0, float(np.abs(expected[name]).max(initial=0, where=finite)))
        np.testing.assert_allclose(got[f"y{k}"], expected[name], rtol=2e-5, atol=4e-6 * scale)


@few
@given(
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    strides=pair,
    dilations=pair,
    pads=st.tuples(*[st.integers(0, 5)] * 4),
    channels=st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3)),
)
def test_convolutions(size, kernel, strides, dilations, pads, channels):
    group, per_group, filters = channels
    rng = np.random.default_rng(0)
    b = Builder()
    x = b.input("x", (2, group * per_group, *size))
    w = b.input("w", (group * filters, per_group, *kernel))
    attrs = {"strides": strides, "pads": pads, "dilations": dilations, "group": group}
    try:
        y = b.emit("conv", [x, w], **attrs)
    except GraphError:
        assume(False)
    dy = b.input("dy", b.shape(y))
    dx = b.emit("conv_dx", [dy, w], shape=b.shape(x), **attrs)
    dw = b.emit("conv_dw", [x, dy], shape=b.shape(w), **attrs)
    values = {name: rng.standard_normal(b.shape(name)) for name in (x, w, dy)}
    agree(b.build([y, dx, dw]), values)


@few
@given(
    rank=st.integers(1, 4),
    data=st.data(),
)
def test_windows(rank, data):
    def draw(low: int, high: int) -> tuple[int, ...]:
        return data.draw(st.tuples(*[st.integers(low, high)] * rank))

    shape = draw(1, 5)
    attrs = {
        "kernel": draw(1, 3), "strides": draw(1, 3), "dilations": draw(1, 2),
        "before": draw(0, 2), "after": draw(0, 2),
    }  # fmt: skip
    b = Builder()
    x = b.input("x", shape)
    try:
        total = b.emit("window_sum", [x], **attrs)
    except GraphError:
        assume(False)
    top, index = b.emit_all("window_max", [x], **attrs)
    dy = b.input("dy", b.shape(total))
    back = b.emit("window_sum_grad", [dy], shape=shape, **attrs)
    won = b.emit("window_max_grad", [dy, index], shape=shape, **attrs)
    rng = np.random.default_rng(0)
    # Few different values, so that several places of a window often hold the maximum.
    values = {x: rng.integers(0, 4, shape).astype(float), dy: rng.standard_normal(b.shape(dy))}
    agree(b.build([total, top, index, back, won]), values)


@few
@given(rank=st.integers(1, 3), data=st.data())
def test_pads(rank, data):
    def draw(low: int, high: int) -> tuple[int, ...]:
        return data.draw(st.tuples(*[st.integers(low, high)] * rank))

    shape, interior = draw(0, 4), draw(0, 2)
    b = Builder()
    x = b.input("x", shape)
    try:
        y = b.emit(
            "pad", [x], before=draw(-2, 2), after=draw(-2, 2), interior=interior,
            value=0.0 if any(interior) else 1.5,
        )  # fmt: skip
    except GraphError:
        assume(False)
    agree(b.build([y]), {x: np.random.default_rng(0).standard_normal(shape)})


@few
@given(rank=st.integers(1, 3), data=st.data())
def test_slices(rank, data):
    b, cuts, shape = Builder(), [], []
    for _ in range(rank):
        size, step = data.draw(st.integers(0, 4)), data.draw(st.sampled_from([-3, -2, -1, 1, 2, 3]))
        low = data.draw(st.integers(0, 2))
        span = abs(step) * max(size - 1, 0)
        cuts.append((low if step > 0 else low + span, step, size))
        shape.append(low + span + 1 + data.draw(st.integers(0, 2)))
    starts, steps, sizes = zip(*cuts, strict=True)
    x = b.input("x", shape)
    y = b.emit("slice", [x], starts=starts, steps=steps, sizes=sizes)
    agree(b.build([y]), {x: np.random.default_rng(0).standard_normal(shape)})


@pytest.mark.parametrize("kind", ["sum", "max", "min"])
def test_reductions_of_operands_that_only_lend_their_shape(kind):
    b = Builder()
    x, y = b.input("x", (3, 1)), b.input("y", (2, 1, 4))
    found = b.emit_all(
        "reduce", [x, y], kind=kind, exprs=("a", "2", "a > b"), axes=(0, 2), dtypes=("float",) * 3
    )
    rng = np.random.default_rng(0)
    agree(b.build(found), {"x": rng.standard_normal((3, 1)), "y": rng.standard_normal((2, 1, 4))})
