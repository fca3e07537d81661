"""Every kernel, executed, against the op's plain reference: random geometry, two buffer sizes.

Float64 throughout, so only the order of summation differs; poisoned memory, so reading what was
never written shows.
"""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ccnn.compiler.codegen import generate, make_context
from ccnn.compiler.mapper import map_graph
from ccnn.passes.graph import Builder
from ccnn.passes.ops import op_named
from ccnn.targets.machine import load_machine
from ccnn.targets.simulator import Execution
from ccnn.targets.verify import verify_program

MACHINES = {name: load_machine(name) for name in ("tiny", "wavecore")}
few = settings(max_examples=25, deadline=None)
machines = st.sampled_from(sorted(MACHINES))


def check(op, inputs, machine, kinds=None, **attrs):
    """Run one node as a program on a machine; compare all results with the reference."""
    b = Builder("t")
    names = [
        "" if x is None else b.input(f"in{i}", x.shape, (kinds or {}).get(i, "float"))
        for i, x in enumerate(inputs)
    ]
    outs = b.emit_all(op, names, **attrs)
    graph = b.build(outs)
    where = MACHINES[machine]
    context = make_context(graph, where, "float64")
    program = generate(context, map_graph(context))
    assert verify_program(program, where) == []
    run = Execution(program, where, poison=True)
    for name, value in zip(names, inputs, strict=True):
        if name:
            run.write(name, value)
    run.step()
    for out, want in zip(outs, op_named(op).reference(graph.nodes[0], inputs), strict=True):
        scale = max(1.0, float(np.abs(want).max(initial=0.0)))
        assert np.abs(run[out] - want).max(initial=0.0) <= 1e-12 * scale * max(1, want.size)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


@st.composite
def convolutions(draw):
    group = draw(st.sampled_from([1, 1, 2, 3]))
    c, k = group * draw(st.integers(1, 5)), group * draw(st.integers(1, 6))
    r, s = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    strides = (draw(st.integers(1, 3)), draw(st.integers(1, 3)))
    dilations = (draw(st.integers(1, 3)), draw(st.integers(1, 2)))
    pads = tuple(draw(st.integers(0, 3)) for _ in range(4))
    h, w = draw(st.integers(1, 14)), draw(st.integers(1, 14))
    p = (h + pads[0] + pads[2] - dilations[0] * (r - 1) - 1) // strides[0] + 1
    q = (w + pads[1] + pads[3] - dilations[1] * (s - 1) - 1) // strides[1] + 1
    assume(p >= 1 and q >= 1)
    n = draw(st.integers(1, 3))
    attrs = {"strides": strides, "pads": pads, "dilations": dilations, "group": group}
    return (n, c, h, w), (k, c // group, r, s), (n, k, p, q), attrs


@few
@given(convolutions(), machines)
def test_convolution(case, machine):
    x, w, y, attrs = case
    check("conv", [normal(*x), normal(*w, seed=1), normal(w[0], seed=2)], machine, **attrs)
    check("conv_dx", [normal(*y), normal(*w, seed=1)], machine, **attrs, shape=x)
    check("conv_dw", [normal(*x), normal(*y, seed=1)], machine, **attrs, shape=w)


@pytest.mark.parametrize("machine", sorted(MACHINES))
def test_convolution_larger_than_the_buffer(machine):
    attrs = {"strides": (2, 1), "pads": (1, 1, 1, 1), "dilations": (1, 1), "group": 1}
    x, w, y = (2, 24, 20, 21), (28, 24, 3, 3), (2, 28, 10, 21)
    check("conv", [normal(*x), normal(*w, seed=1), normal(28, seed=2)], machine, **attrs)
    check("conv_dx", [normal(*y), normal(*w, seed=1)], machine, **attrs, shape=x)
    check("conv_dw", [normal(*x), normal(*y, seed=1)], machine, **attrs, shape=w)


@few
@given(
    st.tuples(*[st.integers(1, 40)] * 3),
    st.lists(st.integers(1, 3), max_size=2),
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.booleans(),
    machines,
)
def test_matmul(mnk, batch, shared, ta, tb, bias, machine):
    m, n, k = mnk
    a = normal(*batch, *((k, m) if ta else (m, k)))
    b = normal(*(() if shared else batch), *((n, k) if tb else (k, n)), seed=1)
    extra = normal(n, seed=2) if bias else None
    check("matmul", [a, b, extra], machine, trans_a=ta, trans_b=tb)


@few
@given(st.lists(st.integers(1, 30), min_size=1, max_size=4), st.data(), machines)
def test_map_and_reduce(shape, data, machine):
    thin = [1 if data.draw(st.booleans()) else d for d in shape]
    axes = tuple(a for a in range(len(shape)) if data.draw(st.booleans())) or (0,)
    x, y = normal(*shape), normal(*thin, seed=1)
    both = {"exprs": ("a * b + 1", "max(a, 0)"), "dtypes": ("float", "accum")}
    check("map", [x, y], machine, **both)
    check("reduce", [x, y], machine, kind="sum", axes=axes, **both)
    check("reduce", [x, y], machine, kind="max", axes=axes, **both)
    check("moments", [x], machine, axes=axes)


@st.composite
def windows(draw):
    shape, before, kernel, strides, dilations, out = [], [], [], [], [], []
    for axis in range(draw(st.integers(1, 4))):
        # windows over more than two dims at once need a larger buffer than tiny has
        k, d = draw(st.integers(1, 3)) if axis < 2 else 1, draw(st.integers(1, 2))
        size, pad = draw(st.integers(k, 14)), draw(st.integers(0, k - 1))
        stride = draw(st.integers(1, 3))
        o = (size + 2 * pad - d * (k - 1) - 1) // stride + 1
        assume(o >= 1)
        shape.append(size)
        before.append(pad)
        kernel.append(k)
        strides.append(stride)
        dilations.append(d)
        out.append(o)
    attrs = {
        "kernel": tuple(kernel),
        "strides": tuple(strides),
        "before": tuple(before),
        "after": tuple(before),
        "dilations": tuple(dilations),
    }
    return tuple(shape), tuple(out), attrs


@few
@given(windows(), machines)
def test_windows(case, machine):
    shape, out, attrs = case
    x, dy = normal(*shape), normal(*out, seed=1)
    check("window_sum", [x], machine, **attrs)
    check("window_sum_grad", [dy], machine, **attrs, shape=shape)
    places = np.indices(out).sum(axis=0) % int(np.prod(attrs["kernel"]))
    kinds = {1: "bytes"}
    check("window_max_grad", [dy, places.astype(np.uint8)], machine, kinds, **attrs, shape=shape)
    reach = [
        b < d * (k - 1) + 1
        for b, d, k in zip(attrs["before"], attrs["dilations"], attrs["kernel"], strict=True)
    ]
    assume(all(reach))
    check("window_max", [x], machine, **attrs)


@few
@given(st.lists(st.integers(1, 20), min_size=1, max_size=4), st.data(), machines)
def test_copies(shape, data, machine):
    x = normal(*shape)
    draw = data.draw
    check("transpose", [x], machine, perm=tuple(draw(st.permutations(range(len(shape))))))
    starts, steps, sizes = [], [], []
    for d in shape:
        start, step = draw(st.integers(0, d - 1)), draw(st.sampled_from([1, 2, 3, -1, -2]))
        room = (d - 1 - start) // step if step > 0 else start // -step
        starts.append(start)
        steps.append(step)
        sizes.append(draw(st.integers(1, room + 1)))
    check("slice", [x], machine, starts=tuple(starts), steps=tuple(steps), sizes=tuple(sizes))
    before = tuple(draw(st.integers(0, 3)) for _ in shape)
    after = tuple(draw(st.integers(0, 3)) for _ in shape)
    interior = tuple(draw(st.integers(0, 2)) for _ in shape)
    check("pad", [x], machine, before=before, after=after, interior=interior, value=1.5)
    axis = draw(st.integers(0, len(shape) - 1))
    other = [draw(st.integers(1, 5)) if a == axis else d for a, d in enumerate(shape)]
    check("concat", [x, normal(*other, seed=1)], machine, axis=axis)


def test_moments_do_not_cancel():
    """float32, mean 1e4 and deviation 1e-1: E[x²]-E[x]² would be off by more than the variance."""
    x = (1e4 + 0.1 * normal(4, 3, 50, 50)).astype(np.float32)
    b = Builder("t")
    name = b.input("x", x.shape)
    outs = b.emit_all("moments", [name], axes=(0, 2, 3))
    context = make_context(b.build(outs), MACHINES["tiny"], "float32")
    run = Execution(generate(context, map_graph(context)), MACHINES["tiny"])
    run.write("x", x)
    run.step()
    true = x.astype(np.float64).var(axis=(0, 2, 3))
    naive = (x * x).mean(axis=(0, 2, 3)) - x.mean(axis=(0, 2, 3)) ** 2
    assert np.abs(run[outs[1]].ravel() / true - 1).max() < 1e-3
    assert np.abs(naive / true - 1).max() > 1.0
