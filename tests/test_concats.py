"""Statistics of parts, and gradients of norms that add up before their sums are known."""

from __future__ import annotations

from functools import cache
from typing import Literal

import numpy as np
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from ccnn.passes.autodiff import Optimizer, differentiate
from ccnn.passes.batch_axis import batch_axis
from ccnn.passes.check import verify
from ccnn.passes.defer_norms import DeferNorms
from ccnn.passes.early_masks import EarlyMasks
from ccnn.passes.graph import Builder, Graph
from ccnn.passes.interpret import interpret
from ccnn.passes.norm_policy import NormPolicy
from ccnn.passes.pipeline import run_pipeline
from ccnn.passes.recompute import Recompute
from ccnn.passes.serialize_minibatch import SerializeMinibatch
from ccnn.passes.split_concats import SplitConcats
from ccnn.passes.steps import ElementBytes, make_steps
from ccnn.passes.traffic import estimate

BATCH, LAYERS = 4, 4


@cache
def dense_step(norm: Literal["exact", "group", "ghost"], channels: int = 2) -> Graph:
    """A training step of a dense block, in primitives: each layer reads all that is made so far."""
    rng, b = np.random.default_rng(0), Builder("dense")

    def parameter(*shape: int) -> str:
        return b.declare(b.fresh("p"), shape, "parameter", data=rng.uniform(-1, 1, shape))

    def layer(x: str, made: int) -> str:
        c = b.shape(x)[1]
        state = [b.declare(b.fresh("s"), (c,), "state", data=np.ones(c)) for _ in range(2)]
        x = b.emit("batch_norm", [x, parameter(c), parameter(c), *state], momentum=0.9)
        x, w, ones = b.emit("relu", [x]), parameter(made, c, 3, 3), (1, 1)
        return b.emit("conv", [x, w], strides=ones, pads=(1,) * 4, dilations=ones, group=1)

    x, target = b.input("x", (BATCH, 3, 6, 6)), b.input("target", (BATCH,), "index")
    w, ones = parameter(4, 3, 3, 3), (1, 1)
    x = b.emit("conv", [x, w], strides=ones, pads=(1,) * 4, dilations=ones, group=1)
    for _ in range(LAYERS):
        x = b.emit("concat", [x, layer(x, channels)], axis=1)
    x = b.emit("reduce_mean", [layer(x, 5)], axes=(2, 3), keepdims=False)
    loss = b.emit("softmax_cross_entropy", [x, target], reduction="mean")
    graph = NormPolicy(norm, 2, channels)(b.build([x]))
    return run_pipeline(differentiate(graph, loss, optimizer=Optimizer(momentum=0.9)))


def equal_results(before: Graph, after: Graph, values: dict[str, np.ndarray]) -> None:
    """Results agree but for the order in which they are added up."""
    verify(after)
    assert before.needed == after.needed
    expected, got = interpret(before, values), interpret(after, values)
    for name in before.needed:
        size = np.abs(expected[name]).max(initial=1e-3)
        np.testing.assert_allclose(got[name], expected[name], rtol=1e-9, atol=1e-11 * size)


def values() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    return {
        "x": rng.standard_normal((BATCH, 3, 6, 6)),
        "target": rng.integers(0, 5, BATCH),
    }


def concatenated(graph: Graph) -> set[str]:
    """Tensors that are concatenations, in whatever shape they are seen."""
    found = {n.outputs[0] for n in graph.nodes if n.op == "concat"}
    return found | {n.outputs[0] for n in graph.nodes if n.op == "reshape" and n.inputs[0] in found}


@pytest.mark.parametrize("norm", ["exact", "group", "ghost"])
def test_a_part_is_summed_up_once(norm):
    graph = dense_step(norm)
    after = SplitConcats()(graph)
    equal_results(graph, after, values())
    read = [n.inputs[0] for n in after.nodes if n.op == "moments"]
    if norm != "ghost":  # ghost batches tear channels apart
        assert concatenated(graph) & {n.inputs[0] for n in graph.nodes if n.op == "moments"}
        assert concatenated(after).isdisjoint(read)
        assert len(read) == len(set(read)) == LAYERS + 1
    floats = [n for n in after.nodes if n.op == "concat" and after[n.outputs[0]].dtype == "float"]
    assert [len(n.inputs) for n in floats] == [2, 3, 4, 5]
    assert concatenated(after).isdisjoint(i for n in floats for i in n.inputs)


def test_groups_that_reach_over_two_parts_stay():
    graph = dense_step("group", 1)
    assert any(
        len({*graph[n.inputs[0]].shape[2:3]} - {1}) for n in graph.nodes if n.op == "moments"
    )
    after = SplitConcats()(graph)
    equal_results(graph, after, values())


def test_each_layer_adds_its_gradient_before_its_sums_are_known():
    graph = SplitConcats()(dense_step("exact"))
    after = DeferNorms()(graph)
    equal_results(graph, after, values())

    def waits(graph: Graph) -> list[str]:
        """Nodes that wait for sums behind the data gradient that they read."""
        steps = make_steps(graph, batch_axis(graph), ElementBytes())
        made = {o: k for k, n in enumerate(steps.nodes) for o in n.outputs if n.op == "conv_dx"}
        return [
            n.name
            for n, barrier in zip(steps.nodes, steps.barrier, strict=True)
            if any(i in made and made[i] < barrier for i in n.inputs)
        ]

    assert len(waits(graph)) == LAYERS + 1
    assert waits(after) == []
    images = {t.name for t in after.tensors.values() if len(t.shape) == 4 and t.shape[0] == BATCH}
    whole = concatenated(after) & images
    applied = [n for n in after.nodes if n.attr("exprs") == ("a + d + (b - c) * e",)]
    assert len(applied) == LAYERS + 1  # once a part
    assert all(whole.isdisjoint(n.inputs) for n in applied)


def test_gradients_of_norms_of_single_samples_are_as_they_were():
    graph = dense_step("group")
    assert DeferNorms()(graph) is graph


@pytest.mark.parametrize("norm", ["exact", "group"])
def test_less_is_moved(norm):
    graph = Recompute(least_bytes=0)(dense_step(norm, 16))
    split = Recompute(least_bytes=0)(SplitConcats()(dense_step(norm, 16)))
    both = Recompute(least_bytes=0)(DeferNorms()(SplitConcats()(dense_step(norm, 16))))
    best = SerializeMinibatch(buffer_bytes=16384, merge_moments=True, in_place=True)
    moved = [estimate(best(g)).total for g in (graph, split, both)]
    assert moved[1] < moved[0]
    assert moved[2] < moved[1] if norm == "exact" else both == split


KINDS = ("join", "join", "add", "twice", "scale")


@cache
def random_step(choices: tuple[tuple[str, int, int], ...]) -> Graph:
    """A step of a net in which norms read what others read, whole or in part."""
    rng, b = np.random.default_rng(0), Builder("random")

    def parameter(*shape: int) -> str:
        return b.declare(b.fresh("p"), shape, "parameter", data=rng.uniform(-1, 1, shape))

    def conv(x: str, made: int) -> str:
        w, ones = parameter(made, b.shape(x)[1], 1, 1), (1, 1)
        return b.emit("conv", [x, w], strides=ones, pads=(0,) * 4, dilations=ones, group=1)

    def norm(x: str) -> str:
        c = b.shape(x)[1]
        state = [b.declare(b.fresh("s"), (c,), "state", data=np.ones(c)) for _ in range(2)]
        return b.emit("batch_norm", [x, parameter(c), parameter(c), *state], momentum=0.9)

    made = [conv(b.input("x", (3, 2, 2, 2)), 2)]
    for kind, left, right in choices:
        x, y = made[left % len(made)], made[right % len(made)]
        if kind == "join":
            z = b.emit("concat", [x, conv(b.emit("relu", [norm(y)]), 2)], axis=1)
        elif kind == "add":
            z = b.emit("add", [x, conv(norm(x), b.shape(x)[1])])
        elif kind == "twice":
            z = b.emit("concat", [x, y, x], axis=1)
        else:
            z = b.emit("mul", [norm(x), x])
        made.append(z)
    y = conv(norm(made[-1]), 1)
    loss = b.emit("reduce_mean", [b.emit("mul", [y, y])], axes=(0, 1, 2, 3), keepdims=False)
    return run_pipeline(differentiate(b.build([y]), loss, optimizer=Optimizer()))


def test_masks_are_taken_once_and_activations_not_kept_for_norms():
    for norm in ("exact", "group"):
        graph = dense_step(norm)
        after = EarlyMasks()(graph)
        equal_results(graph, after, values())
        assert EarlyMasks()(after) is after
        masks = [n for n in after.nodes if n.attr("exprs") == ("where((b > 0), a, 0)",)]
        assert len(masks) == LAYERS + 1
        for mask in masks:
            readers = after.consumers[mask.inputs[1]]
            assert {n.op for n in readers if n.phase == "backward"} == {"map", "conv_dw"}


@given(
    st.lists(
        st.tuples(st.sampled_from(KINDS), st.integers(0, 5), st.integers(0, 5)),
        min_size=1,
        max_size=4,
    )
)
@settings(max_examples=40, deadline=None)
def test_all_results_of_random_nets_stay(choices):
    graph = random_step(tuple(choices))
    split = SplitConcats()(graph)
    deferred = DeferNorms()(split)
    event("deferred" if deferred is not split else "nothing to defer")
    after = EarlyMasks()(deferred)
    event("masked early" if after is not deferred else "nothing to mask")
    equal_results(graph, after, {"x": np.random.default_rng(1).standard_normal((3, 2, 2, 2))})
