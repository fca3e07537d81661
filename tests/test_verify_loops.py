"""The order rule against an independent oracle: unrolled, with every event and every pair."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ccnn.targets import program as ir
from ccnn.targets import verify_order
from ccnn.targets.machine import load_machine
from ccnn.targets.verify_order import order

BUFFERS = (ir.Buffer("x", "gbuf", "f32", 4, 2, 0), ir.Buffer("y", "gbuf", "f32", 4, 3, 64))
DEPTH = {b.name: b.depth for b in BUFFERS}
TOKENS = {"a": ("load", "signal", "vector"), "b": ("vector", "release", "load"),
          "c": ("vector", "signal", "store"), "d": ("store", "release", "vector")}  # fmt: skip
DIMS = ((ir.Extent(4), 1),)


@pytest.fixture(scope="module", autouse=True, params=[0, 2_000], ids=["states", "walked"])
def short_walk(request):
    """Loops whose states are compared from the start, and loops walked to their end."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verify_order, "_SHORT_WALK", request.param)
        yield


@st.composite
def slots(draw):
    terms = draw(st.dictionaries(st.sampled_from(["i", "j"]), st.integers(1, 3), max_size=2))
    return ir.Affine(draw(st.integers(0, 2)), tuple(sorted(terms.items())))


@st.composite
def views(draw):
    return ir.View(draw(st.sampled_from(["x", "y"])), DIMS, ir.ZERO, draw(slots()))


LOADS = st.builds(lambda v: ir.Load(0, v, "t", (ir.ZERO,), (1,)), views())
STORES = st.builds(lambda v: ir.Store(0, "u", (ir.ZERO,), (1,), v), views())
MAPS = st.builds(lambda d, s: ir.Map(0, d, (s,), ("s0",)), views(), views())
GIVES = st.sampled_from([ir.Sync(giver, kind, t) for t, (giver, kind, _) in TOKENS.items()])
TAKES = st.sampled_from([ir.Sync(taker, "wait", t) for t, (_, _, taker) in TOKENS.items()])
STRAIGHT = st.lists(LOADS | MAPS | STORES | GIVES | TAKES, min_size=1, max_size=7)


@st.composite
def kernels(draw):
    inner = ir.Loop("j", draw(st.integers(1, 7)), tuple(draw(STRAIGHT)))
    items = [*draw(STRAIGHT), inner, *draw(STRAIGHT)]
    outer = ir.Loop("i", draw(st.integers(1, 7)), tuple(items))
    tokens = tuple(ir.Token(t, draw(st.integers(0, 3))) for t in TOKENS)
    return ir.Kernel("k", BUFFERS, tokens, _closed((outer,), ()))


def _closed(body, scope):
    """The body with variables that are not in scope taken out of the slot numbers."""
    out = []
    for item in body:
        if isinstance(item, ir.Loop):
            out.append(ir.Loop(item.var, item.trip, _closed(item.body, (*scope, item.var))))
        elif isinstance(item, ir.Load):
            out.append(ir.Load(0, _view(item.dst, scope), item.tensor, item.start, item.step))
        elif isinstance(item, ir.Store):
            out.append(ir.Store(0, item.tensor, item.start, item.step, _view(item.src, scope)))
        elif isinstance(item, ir.Map):
            srcs = tuple(_view(s, scope) for s in item.srcs)
            out.append(ir.Map(0, _view(item.dst, scope), srcs, item.code))
        else:
            out.append(item)
    return tuple(out)


def _view(v, scope):
    slot = ir.Affine(v.slot.const, tuple((n, c) for n, c in v.slot.terms if n in scope))
    return ir.View(v.buffer, v.dims, v.offset, slot)


def unrolled(body, env):
    for item in body:
        if isinstance(item, ir.Loop):
            for value in range(item.trip):
                yield from unrolled(item.body, {**env, item.var: value})
        else:
            yield item, env


def slot_of(view, env):
    return view.buffer, view.slot.at(env) % DEPTH[view.buffer]


def oracle(kernel):
    """Rules broken, from a graph of events: for each, the set of events known to be before."""
    queues = {t.name: deque([frozenset()] * t.initial) for t in kernel.tokens}
    chain = {e: frozenset() for e in ir.ENGINES}
    written_by = {e: frozenset() for e in ir.ENGINES}
    history, broken, filled = [], set(), set()
    for number, (item, env) in enumerate(unrolled(kernel.body, {})):
        e = item.engine
        if isinstance(item, ir.Sync):
            if item.kind == "wait" and not queues[item.token]:
                broken.add("tokens")
            elif item.kind == "wait":
                chain[e] |= queues[item.token].popleft()
            elif item.kind == "signal":
                queues[item.token].append(chain[e] | written_by[e])
            else:
                queues[item.token].append(chain[e])
            continue
        reads, writes = [], []
        if isinstance(item, ir.Load):
            writes = [slot_of(item.dst, env)]
        elif isinstance(item, ir.Store):
            reads = [slot_of(item.src, env)]
        else:
            reads, writes = [slot_of(s, env) for s in item.srcs], [slot_of(item.dst, env)]
        if any(s not in filled for s in reads):
            broken.add("defined")
        for other, place, kind, event in history:
            clash = place in writes or (place in reads and kind == "write")
            if other != e and clash and event not in chain[e]:
                broken.add("hazards")
        history += [(e, s, "read", (number, "read")) for s in reads]
        history += [(e, s, "write", (number, "write")) for s in writes]
        filled |= set(writes)
        written_by[e] |= {(number, "write"), (number, "read")}
        chain[e] |= {(number, "read")}
    return broken


PROGRAM = ir.Program(
    "p", "tiny", "f32", "f32", 1024,
    (ir.Placed("t", (4,), "f32", "input", 0), ir.Placed("u", (4,), "f32", "value", 64)),
    (ir.NodeRef("n", "", "", ""),), (),
)  # fmt: skip
TINY = load_machine("tiny")


@settings(max_examples=300, deadline=None)
@given(kernels())
def test_walk_finds_what_the_oracle_finds(kernel):
    program = ir.Program(**{**vars(PROGRAM), "kernels": (kernel,)})
    assert {f.rule for f in order(program, TINY)} == oracle(kernel)


def pipeline(trip, x_free=2, full_kind="signal", y_depth_tokens=3):
    """load -> x -> vector -> y -> store, all double or triple buffered."""
    i = ir.var("i")
    body = (
        ir.Sync("load", "wait", "b"),
        ir.Load(0, ir.View("x", DIMS, ir.ZERO, i), "t", (ir.ZERO,), (1,)),
        ir.Sync("load", full_kind, "a"),
        ir.Sync("vector", "wait", "a"),
        ir.Sync("vector", "wait", "d"),
        ir.Map(0, ir.View("y", DIMS, ir.ZERO, i), (ir.View("x", DIMS, ir.ZERO, i),), ("s0",)),
        ir.Sync("vector", "release", "b"),
        ir.Sync("vector", "signal", "c"),
        ir.Sync("store", "wait", "c"),
        ir.Store(0, "u", (ir.ZERO,), (1,), ir.View("y", DIMS, ir.ZERO, i)),
        ir.Sync("store", "release", "d"),
    )
    tokens = (ir.Token("a"), ir.Token("b", x_free), ir.Token("c"), ir.Token("d", y_depth_tokens))
    return ir.Kernel("k", BUFFERS, tokens, (ir.Loop("i", trip, body),))


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 9), st.integers(0, 4), st.sampled_from(["signal", "release"]), st.integers(0, 5)
)
def test_walk_agrees_on_pipelines(trip, free, kind, tokens):
    kernel = pipeline(trip, free, kind, tokens)
    program = ir.Program(**{**vars(PROGRAM), "kernels": (kernel,)})
    assert {f.rule for f in order(program, TINY)} == oracle(kernel)


def test_the_sound_pipeline_has_no_finding():
    program = ir.Program(**{**vars(PROGRAM), "kernels": (pipeline(10**9),)})
    assert list(order(program, TINY)) == []
