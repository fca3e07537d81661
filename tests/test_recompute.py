"""What is made anew in the backward pass: the same results, and the cheapest choice there is."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import chain, combinations

import numpy as np
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st
from test_batch_axis import BATCH, network
from test_passes import SHAPE, STEPS, random_net

from ccnn.passes.autodiff import Optimizer, differentiate
from ccnn.passes.batch_axis import batch_axis
from ccnn.passes.check import verify
from ccnn.passes.graph import Builder, Graph, GraphError
from ccnn.passes.interpret import interpret
from ccnn.passes.norm_policy import NormPolicy
from ccnn.passes.pipeline import run_pipeline
from ccnn.passes.pool_masks import mask_behind_pools
from ccnn.passes.recompute import Recompute
from ccnn.passes.room_again import backward_crowd
from ccnn.passes.steps import ElementBytes, make_steps


def stored(graph: Graph) -> set[str]:
    """Tensors of the forward pass that the backward pass reads, and inputs it makes some from."""
    made = {o for n in graph.nodes if n.phase != "backward" for o in n.outputs}
    inputs = {t.name for t in graph.of_role("input")}
    return {
        i
        for n in graph.nodes
        if n.phase == "backward"
        for i in n.inputs
        if i in made or (i in inputs and "/again" in n.name)
    }


def price(graph: Graph, names: set[str]) -> int:
    """A write and a read of each; only a read of what is in memory anyway."""
    sizes = ElementBytes()
    there = graph.needed | {t.name for t in graph.of_role("input")}
    known = {t.name for t in graph.of_role("parameter", "constant")}
    views = {n.outputs[0] for n in graph.nodes if n.op == "reshape" and n.inputs[0] in known}
    return sum(
        graph[t].size * sizes.of(graph[t].dtype) * (1 if t in there else 2) for t in names - views
    )


@pytest.mark.parametrize("kind", ["none", "cheap", "layers"])
@pytest.mark.parametrize("norm", ["exact", "group", "ghost"])
def test_results_stay_and_less_is_stored(norm, kind):
    graph = network(NormPolicy(norm, 2, 4))
    after = Recompute(kind, least_bytes=0)(graph)
    verify(after)
    rng = np.random.default_rng(1)
    values = {"x": rng.standard_normal((BATCH, 3, 8, 8)), "target": rng.integers(0, 5, BATCH)}
    expected, got = interpret(graph, values), interpret(after, values)
    assert graph.needed == after.needed
    for name in graph.needed:
        np.testing.assert_array_equal(got[name], expected[name])
    again = [n for n in after.nodes if "/again" in n.name]
    if kind == "none":
        assert after is graph
        return
    assert price(after, stored(after)) < price(graph, stored(graph))
    early = [n for n in again if n.phase != "backward"]
    assert bool(early) == (kind == "layers" and norm == "exact")
    origins = {n.name: n.origin for n in graph.nodes}
    assert all(n.origin == origins[n.name.rpartition("/again")[0]] for n in again)
    assert any(n.op == "conv" for n in again) == (kind == "layers")


def test_a_node_runs_again_right_before_it_is_needed():
    graph = Recompute(least_bytes=0)(network(NormPolicy("group", 2)))
    names = [n.name for n in graph.nodes]
    for k, node in enumerate(graph.nodes):
        if "/again" in node.name:
            follow = next(n for n in graph.nodes[k + 1 :] if "/again" not in n.name)
            needed = {o for n in graph.nodes[k : names.index(follow.name)] for o in n.outputs}
            assert needed & set(follow.inputs)


def test_a_norm_does_not_store_what_a_small_layer_makes():
    """The apply step waits for the statistics and makes the convolution anew, not so a larger one
    in front, of which the operand is no smaller than the result."""
    rng, b = np.random.default_rng(0), Builder("net")

    def layer(x: str, k: int) -> str:
        shape = (k, b.shape(x)[1], 1, 1)
        w = b.declare(b.fresh("w"), shape, "parameter", data=rng.uniform(-1, 1, shape))
        ones, pads = (1, 1), (0, 0, 0, 0)
        y = b.emit("conv", [x, w], strides=ones, pads=pads, dilations=ones, group=1)
        scale = [b.declare(b.fresh("s"), (k,), "parameter", data=np.ones(k)) for _ in range(2)]
        state = [b.declare(b.fresh("r"), (k,), "state", data=np.ones(k)) for _ in range(2)]
        return b.emit("relu", [b.emit("batch_norm", [y, *scale, *state], momentum=0.9)])

    x, target = b.input("x", (8, 16, 4, 4)), b.input("target", (8,), "index")
    y = layer(layer(x, 4), 16)
    y = b.emit("reshape", [b.emit("reduce_mean", [y], axes=(2, 3), keepdims=True)], shape=(8, 16))
    loss = b.emit("softmax_cross_entropy", [y, target], reduction="mean")
    graph = run_pipeline(differentiate(b.build([y]), loss, optimizer=Optimizer()))
    after = Recompute("layers", least_bytes=0)(graph)
    verify(after)
    early = [n for n in after.nodes if "/again" in n.name and n.phase == "forward"]
    assert [n.op for n in early if n.op == "conv"] == ["conv"]
    assert after[early[-1].outputs[0]].shape[1] == 16
    large = graph.producer[early[-1].outputs[0].removesuffix(".again")].outputs[0]
    assert {n.op for n in after.consumers[large] if n.phase == "forward"} == {"moments"}
    values = {"x": rng.standard_normal((8, 16, 4, 4)), "target": rng.integers(0, 16, 8)}
    expected, got = interpret(graph, values), interpret(after, values)
    for name in graph.needed:
        np.testing.assert_array_equal(got[name], expected[name])


def test_behind_a_barrier_a_tensor_is_made_once_more():
    graph = Recompute(least_bytes=0)(network(NormPolicy("exact")))
    steps = make_steps(graph, batch_axis(graph), ElementBytes())
    place = {t: k for k, n in enumerate(steps.nodes) for t in n.outputs}
    for k, node in enumerate(steps.nodes):
        for name in node.inputs:
            if ".again" in name and name in place:
                assert place[name] > steps.barrier[k]
    assert any(n.name.endswith("/again.1") for n in graph.nodes)
    grouped = Recompute(least_bytes=0)(network(NormPolicy("group", 2)))
    assert not any(n.name.endswith("/again.1") for n in grouped.nodes)


@cache
def lowered(choices: tuple[tuple[str, int, int], ...]) -> Graph:
    graph, loss = random_net(list(choices))
    return run_pipeline(differentiate(graph, loss, optimizer=Optimizer()))


@given(
    st.lists(
        st.tuples(st.sampled_from(STEPS), st.integers(0, 9), st.integers(0, 9)),
        min_size=1,
        max_size=7,
    )
)
@settings(max_examples=150, deadline=None)
def test_no_choice_of_what_to_store_is_cheaper(choices):
    graph = lowered(tuple(choices))
    options = Recompute(least_bytes=0)
    after = options(graph)
    values = {"x": np.random.default_rng(1).standard_normal(SHAPE)}
    expected, got = interpret(graph, values), interpret(after, values)
    for name in graph.needed:
        np.testing.assert_array_equal(got[name], expected[name])
    best = cheapest(graph, options)
    event(f"compared: {best is not None}, made anew: {len(after.nodes) > len(graph.nodes)}")
    if best is not None:
        assert price(after, stored(after)) == best


def cheapest(graph: Graph, options: Recompute) -> int | None:
    """The least price of tensors from which all that is read can be made; None: too many."""
    first = {n.outputs[0]: n for n in graph.nodes if n.phase != "backward"}
    made = {o: n for n in first.values() for o in n.outputs}
    inputs = {t.name for t in graph.of_role("input")}
    wanted = stored(graph)
    relevant, open_ = set(), list(wanted)
    while open_:
        name = open_.pop()
        if name in relevant or (name not in made and name not in inputs):
            continue
        relevant.add(name)
        if name in made and options.may_run_again(graph, made[name]):
            open_ += made[name].inputs
    if len(relevant) > 12:
        return None

    def suffices(kept: set[str]) -> bool:
        def there(name: str) -> bool:
            if name in kept or name not in made:
                return name in kept or name not in inputs
            return options.may_run_again(graph, made[name]) and all(map(there, made[name].inputs))

        return all(map(there, wanted))

    subsets = chain.from_iterable(
        combinations(sorted(relevant), n) for n in range(len(relevant) + 1)
    )
    return min(price(graph, set(s)) for s in subsets if suffices(set(s)))


def layers_in_a_row(count: int) -> Graph:
    """A step of 1 x 1 convolutions with a relu behind each, cheap to make anew."""
    rng, b = np.random.default_rng(0), Builder("row")
    x, target = b.input("x", (4, 4, 8, 8)), b.input("target", (4,), "index")
    for k in range(count):
        w = b.declare(f"w{k}", (4, 4, 1, 1), "parameter", data=rng.uniform(-1, 1, (4, 4, 1, 1)))
        ones = (1, 1)
        y = b.emit("conv", [x, w], strides=ones, pads=(0,) * 4, dilations=ones, group=1)
        x = b.emit("relu", [y])
    y = b.emit("reshape", [b.emit("reduce_mean", [x], axes=(2, 3), keepdims=True)], shape=(4, 4))
    loss = b.emit("softmax_cross_entropy", [y, target], reduction="mean")
    return run_pipeline(differentiate(b.build([y]), loss, optimizer=Optimizer()))


def most_alive(graph: Graph) -> float:
    return max(backward_crowd(graph, ElementBytes()).live.values())


def test_what_does_not_fit_at_once_is_stored_half_way():
    """A sample of a tensor takes 512 bytes; a row of layers made anew needs one for each."""
    graph = layers_in_a_row(8)
    free = Recompute("layers", least_bytes=512)
    roomy, most = free(graph), most_alive(free(graph))
    assert not any(i.startswith("conv") for i in stored(roomy) & {*graph.tensors})
    assert replace(free, room_bytes=most)(graph).nodes == roomy.nodes
    narrow = replace(free, room_bytes=most - 1)(graph)
    verify(narrow)
    assert most_alive(narrow) < most
    assert price(roomy, stored(roomy)) < price(narrow, stored(narrow)) < price(graph, stored(graph))
    rng = np.random.default_rng(1)
    values = {"x": rng.standard_normal((4, 4, 8, 8)), "target": rng.integers(0, 4, 4)}
    got, expected = interpret(narrow, values), interpret(graph, values)
    for name in graph.needed:
        np.testing.assert_array_equal(got[name], expected[name])
    # where even one layer does not fit, storing helps nobody
    assert replace(free, room_bytes=1.0)(graph).nodes == roomy.nodes


def test_an_average_of_what_is_there_is_not_stored():
    b = Builder("averages")
    x, target = b.input("x", (4, 3, 8, 8)), b.input("target", (4,), "index")
    rng = np.random.default_rng(0)

    def conv(x: str, name: str) -> str:
        w = b.declare(name, (3, 3, 1, 1), "parameter", data=rng.uniform(-1, 1, (3, 3, 1, 1)))
        ones = (1, 1)
        return b.emit("conv", [x, w], strides=ones, pads=(0,) * 4, dilations=ones, group=1)

    window = {"kernel": (3, 3), "strides": (1, 1), "pads": (1,) * 4, "dilations": (1, 1)}
    x = b.emit("relu", [conv(x, "v")])
    average = b.emit("avg_pool", [x], ceil_extra=(0, 0), count_include_pad=False, **window)
    x = b.emit("add", [conv(average, "w"), conv(x, "u")])
    y = b.emit("reshape", [b.emit("reduce_mean", [x], axes=(2, 3), keepdims=True)], shape=(4, 3))
    loss = b.emit("softmax_cross_entropy", [y, target], reduction="mean")
    graph = run_pipeline(differentiate(b.build([y]), loss, optimizer=Optimizer()))
    after = Recompute(least_bytes=0)(graph)
    assert average in stored(graph)
    assert average not in stored(after)
    assert any(n.op == "window_sum" and n.phase == "backward" for n in after.nodes)


def test_unknown_choices_are_refused():
    with pytest.raises(GraphError, match="is none of none, cheap, layers"):
        Recompute("everything")  # pyright: ignore[reportArgumentType]


def pooled(kernel: int, stride: int, pad: int, mask: str = "where((b > 0), a, 0)") -> Graph:
    """A relu, a max pool over it, and the gradients of both."""
    b = Builder("pooled")
    x = b.input("x", (2, 3, 9, 8))
    y = b.emit("map", [x], exprs=("max(a, 0)",), dtypes=("float",))
    window = {"kernel": (1, 1, kernel, kernel), "strides": (1, 1, stride, stride)}
    window |= {"before": (0, 0, pad, pad), "after": (0, 0, pad, pad), "dilations": (1, 1, 1, 1)}
    p, i = b.emit_all("window_max", [y], **window)
    dp = b.input("dp", b.shape(p))
    b.phase = "backward"
    d = b.emit("window_max_grad", [dp, i], shape=b.shape(x), **window)
    dx = b.emit("map", [d, y], exprs=(mask,), dtypes=("float",))
    return b.build([p, dx])


@pytest.mark.parametrize(("kernel", "stride", "pad"), [(2, 2, 0), (3, 2, 1), (3, 1, 1), (2, 3, 0)])
def test_the_mask_behind_a_max_pool_gives_the_same_numbers(kernel, stride, pad):
    graph = pooled(kernel, stride, pad)
    after = mask_behind_pools(graph)
    verify(after)
    assert [n.op for n in after.nodes] == ["map", "window_max", "map", "window_max_grad"]
    rng = np.random.default_rng(4)
    # few values, so that windows hold equal ones, zeros and negative ones
    values = {"x": rng.integers(-2, 3, graph["x"].shape).astype(float)}
    values["dp"] = rng.standard_normal(graph["dp"].shape)
    expected, got = interpret(graph, values), interpret(after, values)
    for name in graph.outputs:
        np.testing.assert_array_equal(got[name], expected[name])


def normed(of_sum: str, of_map: str) -> Graph:
    """A pool's gradient read by a sum and a map, as those of a norm's gradient: a is what was
    normed, b the gradient, c what went into the pool."""
    b = Builder("normed")
    x = b.input("x", (2, 3, 9, 8))
    y = b.emit("map", [x], exprs=("max(a, 0)",), dtypes=("float",))
    window = {"kernel": (1, 1, 3, 3), "strides": (1, 1, 2, 2), "dilations": (1, 1, 1, 1)}
    window |= {"before": (0, 0, 1, 1), "after": (0, 0, 1, 1)}
    p, i = b.emit_all("window_max", [y], **window)
    dp = b.input("dp", b.shape(p))
    b.phase = "backward"
    d = b.emit("window_max_grad", [dp, i], shape=b.shape(x), **window)
    sums = {"axes": (2, 3), "kind": "sum", "dtypes": ("float",)}
    total = b.emit("reduce", [x, d, y], exprs=(of_sum,), **sums)
    dx = b.emit("map", [x, d, y], exprs=(of_map,), dtypes=("float",))
    return b.build([p, total, dx])


def test_a_mask_within_a_norms_gradient_goes_behind_the_pool():
    graph = normed("where((c > 0), b, 0) * a", "where((c > 0), b, 0) * 0.5 + a")
    after = mask_behind_pools(graph)
    verify(after)
    ops = ["map", "window_max", "map", "window_max_grad", "reduce", "map"]
    assert [n.op for n in after.nodes] == ops
    assert [len(n.inputs) for n in after.nodes[-2:]] == [2, 2]
    rng = np.random.default_rng(4)
    values = {"x": rng.integers(-2, 3, graph["x"].shape).astype(float)}
    values["dp"] = rng.standard_normal(graph["dp"].shape)
    expected, got = interpret(graph, values), interpret(after, values)
    for name in graph.outputs:
        np.testing.assert_array_equal(got[name], expected[name])


@pytest.mark.parametrize(
    "other", ["b * 0.5 + a", "where((c > 0), b, 0) + c", "where((a > 0), b, 0)"]
)
def test_a_gradient_that_is_not_masked_everywhere_stays(other):
    graph = normed("where((c > 0), b, 0) * a", other)
    assert mask_behind_pools(graph) is graph


def test_other_gradients_stay_in_front_of_the_pool():
    graph = pooled(2, 2, 0, "where((b > 0), a, a * 0.5)")
    assert mask_behind_pools(graph) is graph


def behind_norm(spread: str) -> Graph:
    """The gradients of a pool, or a mean, and of an exact norm in front of it."""
    b = Builder("behind_norm")
    y = b.input("y", (4, 3, 8, 8))
    window = {"kernel": (1, 1, 2, 2), "strides": (1, 1, 2, 2), "dilations": (1, 1, 1, 1)}
    window |= {"before": (0, 0, 0, 0), "after": (0, 0, 0, 0)}
    p, i = b.emit_all("window_max", [y], **window)
    dp = b.input("dp", b.shape(p))
    b.phase = "backward"
    made = b.emit("map", [dp, p], exprs=("a * b",), dtypes=("float",))
    if spread == "window_max_grad":
        d = b.emit("window_max_grad", [made, i], shape=b.shape(y), **window)
    else:
        d = b.emit("map", [y, b.emit("window_sum_grad", [made], shape=b.shape(y), **window)],
                   exprs=("a * b",), dtypes=("float",))  # fmt: skip
    s = b.emit("reduce", [d, y], axes=(0, 2, 3), dtypes=("accum",), exprs=("a * b",), kind="sum")
    dx = b.emit("map", [d, y, s], exprs=("a - b * c",), dtypes=("float",))
    return b.build([p, dx])


def test_a_small_gradient_is_spread_again_behind_a_barrier():
    graph = behind_norm("window_max_grad")
    after = Recompute(least_bytes=0)(graph)
    verify(after)
    spread = [n for n in after.nodes if n.op == "window_max_grad"]
    assert [len(after.consumers[n.outputs[0]]) for n in spread] == [1, 1]
    assert spread[0].inputs == spread[1].inputs
    rng = np.random.default_rng(5)
    values = {t.name: rng.standard_normal(t.shape) for t in graph.of_role("input")}
    expected, got = interpret(graph, values), interpret(after, values)
    for name in graph.outputs:
        np.testing.assert_array_equal(got[name], expected[name])


def test_a_gradient_as_large_as_its_operands_is_kept():
    graph = behind_norm("window_sum_grad")
    after = Recompute(least_bytes=0)(graph)
    assert [n.op for n in after.nodes] == [n.op for n in graph.nodes]


def test_an_average_is_stored_where_norms_wait_for_the_batch():
    b = Builder("averages")
    x = b.input("x", (4, 3, 8, 8))
    attrs = {"axes": (0, 2, 3), "dtypes": ("accum",), "exprs": ("a",), "kind": "sum"}
    window = {"kernel": (1, 1, 3, 3), "strides": (1, 1, 1, 1), "dilations": (1, 1, 1, 1)}
    y = b.emit("map", [x, b.emit("reduce", [x], **attrs)], exprs=("a - b",), dtypes=("float",))
    p = b.emit("window_sum", [y], before=(0, 0, 1, 1), after=(0, 0, 1, 1), **window)
    b.phase = "backward"
    graph = b.build([y, b.emit("map", [p, y], exprs=("a * b",), dtypes=("float",))])
    after = Recompute(least_bytes=0)(graph)
    assert p in stored(after)
