"""Layers fused with their vector work: what may be one group, what it saves, the same results."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from serialised import run_serialised
from test_batch_axis import BATCH
from test_passes import SHAPE, STEPS
from test_recompute import lowered
from test_serialize import step, values

from ccnn.passes.autodiff import differentiate
from ccnn.passes.batch_axis import batch_axis
from ccnn.passes.check import verify
from ccnn.passes.fuse_layers import FuseLayers
from ccnn.passes.graph import Builder, Graph, GraphError
from ccnn.passes.interpret import interpret
from ccnn.passes.pipeline import run_pipeline
from ccnn.passes.recompute import Recompute
from ccnn.passes.steps import ARRAY_OPS, ElementBytes, make_steps
from ccnn.passes.traffic import estimate, uses

SIDE, CHANNELS, SAMPLES = 6, 4, 8
D, K = SAMPLES * CHANNELS * SIDE**2 * 2, CHANNELS**2 * 2
"""Bytes of a feature map and of a kernel, all of one size."""


def operands(graph: Graph, names: tuple[str, ...]) -> list[set[str]]:
    nodes = {n.name: n for n in graph.nodes}
    return [{*nodes[n].inputs[:2]} for n in names if nodes[n].op in ARRAY_OPS]


@pytest.mark.parametrize("buffer", [600, 1500, 4000, 10**6])
@pytest.mark.parametrize("norm", ["exact", "group", "ghost"])
def test_groups_compute_the_same_move_what_is_estimated_and_fit(norm, buffer):
    graph = step(norm)
    fused = FuseLayers(buffer)(graph)
    verify(fused)
    assert sorted(n.name for n in fused.nodes) == sorted(n.name for n in graph.nodes)
    given_values = values(graph)
    run, expected = run_serialised(fused, given_values), interpret(graph, given_values)
    for name in graph.needed:
        np.testing.assert_allclose(run.values[name], expected[name], rtol=1e-9, atol=1e-12)
    moved = estimate(fused)
    assert (run.read, run.written) == (moved.read, moved.written)
    assert run.most <= buffer
    assert moved.total < estimate(graph).total
    for group in fused.groups:
        layers = operands(graph, group.nodes)
        assert not layers or set.intersection(*layers), group  # they share an operand


@given(
    st.lists(
        st.tuples(st.sampled_from(STEPS), st.integers(0, 9), st.integers(0, 9)),
        min_size=1,
        max_size=7,
    ),
    st.sampled_from([300, 1000, 10**5]),
    st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_random_nets_keep_their_results_and_move_no_more(choices, buffer, next_norm):
    graph = lowered(tuple(choices))
    fused = FuseLayers(buffer, next_norm=next_norm)(graph)
    verify(fused)
    known = {**graph.data, "x": np.random.default_rng(1).standard_normal(SHAPE)}
    run, expected = run_serialised(fused, known), interpret(graph, known)
    for name in graph.needed:
        np.testing.assert_allclose(run.values[name], expected[name], rtol=1e-8, atol=1e-10)
    assert estimate(fused).total <= estimate(graph).total


@cache
def chain(recompute: str = "none") -> Graph:
    """Three times batch norm, relu, 1x1 convolution, and its training step in primitives."""
    b = Builder("chain")
    x = b.input("x", (SAMPLES, CHANNELS, SIDE, SIDE))
    rng = np.random.default_rng(0)
    for k in range(3):
        vectors = [
            b.declare(f"{n}{k}", (CHANNELS,), role, data=np.ones(CHANNELS))
            for n, role in (("s", "parameter"), ("b", "parameter"), ("m", "state"), ("v", "state"))
        ]
        y, *_ = b.emit_all("batch_norm", [x, *vectors], name=f"bn{k}")
        w = rng.standard_normal((CHANNELS, CHANNELS, 1, 1))
        w = b.declare(f"w{k}", w.shape, "parameter", data=w)
        ones = {"strides": (1, 1), "dilations": (1, 1), "pads": (0,) * 4, "group": 1}
        x = b.emit("conv", [b.emit("relu", [y], name=f"relu{k}"), w], name=f"conv{k}", **ones)
    loss = b.emit("reduce_mean", [b.emit("mul", [x, x])], axes=(0, 1, 2, 3), keepdims=False)
    graph = run_pipeline(differentiate(b.build([x]), loss))
    return Recompute(recompute, least_bytes=0)(graph)


def large_bytes(graph: Graph, layer: str) -> int:
    """Features and kernels that the groups with a layer's nodes move; statistics left out."""
    steps = make_steps(graph, batch_axis(graph), ElementBytes())
    place = {n.name: k for k, n in enumerate(steps.nodes)}
    total = 0
    for group in graph.groups:
        if not any(n.startswith(layer) for n in group.nodes):
            continue
        at = [place[n] for n in group.nodes if n in place]
        held = {steps.root[t] for t in (*group.resident, *group.kept)}
        for use in uses(steps, min(at), max(at) + 1).values():
            if use.store.size >= K:
                rounds = -(-SAMPLES // (group.sub_batch or SAMPLES))
                here = use.moved_on_chip() if use.store.name in held else use.moved(rounds)
                total += sum(here)
    return total


def test_the_blocks_move_what_the_papers_blocks_do():
    # Wang, Hao and Li 2020, counted in sweeps: the layer in the middle of a chain
    #   forward   read the norm's input and the kernel, write the layer's output
    #   backward  one sweep over dY: read dy and y of the norm behind, the norm's input for the
    #             activation made anew and for the sums, the kernel; write dx and the kernel's dw
    fused = FuseLayers(3 * D, merge_moments=True)(chain("cheap"))
    assert any(g.sub_batch for g in fused.groups)
    forward = D + K + D
    backward = (D + D) + D + K + D + K
    assert large_bytes(fused, "conv1") == forward + backward


def test_without_the_next_norm_its_halves_are_sweeps_of_their_own():
    both, one = (
        FuseLayers(3 * D, next_norm=n, merge_moments=True)(chain("cheap")) for n in (True, False)
    )
    nodes = {n.name: n for n in one.nodes}
    for group in one.groups:
        ops = [nodes[n].op for n in group.nodes]
        layers = [k for k, op in enumerate(ops) if op in ARRAY_OPS]
        assert not layers or "moments" not in ops[layers[0] :]
    assert any({"conv", "moments"} <= {nodes[n].op for n in g.nodes} for g in both.groups)
    # a layer in the middle: statistics read once more; the gradient written and read once more
    assert estimate(one).total - estimate(both).total >= 2 * D + 2 * D


def test_nothing_is_fused_where_nothing_fits():
    assert FuseLayers(1)(step("exact")).groups == ()


def test_options_are_checked():
    with pytest.raises(GraphError, match="of buffer are reserved"):
        FuseLayers(10, 10)


def test_a_batch_that_does_not_divide_ends_with_a_smaller_part():
    fused = FuseLayers(1500)(step("group"))
    assert any(g.sub_batch and BATCH % g.sub_batch for g in fused.groups)
