"""What a group leaves in the buffer for the next: chosen, counted, executed and proven safe."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from itertools import product
from math import lcm

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reference import DATA
from serialised import run_serialised
from test_serialize import step, values

from ccnn.compiler.codegen.emit import Region
from ccnn.compiler.codegen.hand_over import Handed, Passage
from ccnn.compiler.codegen.iterations import Run, runs_of
from ccnn.compiler.driver import Compilation, CompileOptions, compile_model
from ccnn.compiler.execution import run_steps
from ccnn.passes.batch_axis import batch_axis
from ccnn.passes.check import verify
from ccnn.passes.graph import GraphError, Group
from ccnn.passes.interpret import interpret
from ccnn.passes.serialize_minibatch import SerializeMinibatch
from ccnn.passes.stacks import Stack, together
from ccnn.passes.text import parse_graph, print_graph
from ccnn.passes.traffic import estimate
from ccnn.targets.binary import encode
from ccnn.targets.binary_reader import decode
from ccnn.targets.machine import load_machine
from ccnn.targets.program import Buffer, Kernel, Program, var
from ccnn.targets.simulator import simulate
from ccnn.targets.text import parse_program, print_program
from ccnn.targets.verify import verify_program


@pytest.mark.parametrize("buffer", [1500, 2500, 4000, 6000, 9000, 20000])
@pytest.mark.parametrize("norm", ["exact", "group"])
def test_what_is_handed_over_is_counted_and_fits(norm, buffer):
    graph = step(norm, "cheap")
    alone, grouped = (
        SerializeMinibatch(buffer_bytes=buffer, hand_over=h)(graph) for h in (False, True)
    )
    verify(grouped)
    given = values(graph)
    run, expected = run_serialised(grouped, given), interpret(graph, given)
    for name in graph.needed:
        np.testing.assert_allclose(run.values[name], expected[name], rtol=1e-9, atol=1e-12)
    moved = estimate(grouped)
    assert (run.read, run.written) == (moved.read, moved.written)
    assert run.most <= buffer
    assert moved.total <= estimate(alone).total
    assert parse_graph(print_graph(grouped)).groups == grouped.groups


def test_it_saves_and_turns_round():
    graph = step("exact", "cheap")
    grouped = SerializeMinibatch(buffer_bytes=4000, hand_over=True)(graph)
    assert any(g.left and g.left_samples < 8 for g in grouped.groups)
    for one, other in zip(grouped.groups, grouped.groups[1:], strict=False):
        assert (one.left, one.left_samples) == (other.found, other.found_samples)
        if other.found:
            assert one.backwards != other.backwards
    alone = SerializeMinibatch(buffer_bytes=4000)(graph)
    assert estimate(grouped).total < 0.97 * estimate(alone).total


def test_what_is_found_must_have_been_left():
    grouped = SerializeMinibatch(buffer_bytes=4000, hand_over=True)(step("exact", "cheap"))
    groups = tuple(replace(g, left=(), left_samples=0) for g in grouped.groups)
    with pytest.raises(GraphError, match="does not find what the group before leaves"):
        verify(replace(grouped, groups=groups))


@cache
def compiled(kib: int, recompute: str = "cheap") -> Compilation:
    """A small ResNet on a machine with so much buffer, in float64."""
    machine = replace(load_machine("wavecore"), gbuf_bytes=kib * 1024)
    options = CompileOptions(
        batch=8, serialize="best", recompute=recompute, dtype="float64", target=machine
    )
    return compile_model(DATA / "resnet8_cifar" / "model.onnx", options)


@pytest.mark.parametrize("kib", [300, 512])
def test_programs_that_hand_over_are_safe_and_right(kib):
    c = compiled(kib)
    assert sum(bool(g.left) for g in c.lowered.groups) >= 5
    assert any(g.left_samples < 8 for g in c.lowered.groups if g.left)
    assert verify_program(c.program, c.machine) == []
    shapes = {t.name: t.shape for t in c.primitives.of_role("input")}
    rng = np.random.default_rng(2)
    fed = {c.model.inputs[0]: rng.standard_normal(shapes[c.model.inputs[0]])}
    fed[c.model.target] = rng.integers(0, 10, shapes[c.model.target])
    got = run_steps(c, fed, 1)
    expected = interpret(c.primitives, {**c.primitives.data, **fed})
    assert got
    for name, tensor in c.primitives.gradients.items():
        np.testing.assert_allclose(got[f"grad/{name}"], expected[tensor], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kib", [300, 512])
def test_what_is_handed_over_moves_so_much_less(kib):
    """Of a gradient that only two groups need, the rest alone is written, and read once."""
    c = compiled(kib)
    moved = {t.name: t for t in simulate(c.program, c.machine).tensors}
    axis, seen = batch_axis(c.lowered), 0
    for one, other in zip(c.lowered.groups, c.lowered.groups[1:], strict=False):
        for name in one.left:
            inside = {*one.nodes, *other.nodes}
            readers = {n.name for n in c.lowered.consumers[name]}
            if c.lowered.producer[name].name not in one.nodes or not readers <= inside:
                continue
            rest = c.lowered[name].size * 8 * (axis.batch - one.left_samples) // axis.batch
            if not rest:
                assert name not in moved
                continue
            seen += 1
            assert (moved[name].write_bytes, moved[name].read_bytes) == (rest, rest)
    assert seen


def test_programs_with_found_buffers_print_and_parse_back():
    program = compiled(300).program
    assert any(b.found for k in program.kernels for b in k.buffers)
    assert parse_program(print_program(program)) == program
    assert decode(encode(program)) == program


def changed(program: Program, change) -> Program:
    """The program with every buffer that is found changed; `change` gives None to drop it."""
    kernels = [
        replace(k, buffers=tuple(change(b) if b.found else b for b in k.buffers))
        for k in program.kernels
    ]
    return replace(program, kernels=tuple(kernels))


@pytest.mark.parametrize(
    ("change", "rule", "why"),
    [
        (lambda b: replace(b, found=False), "defined", "is read before anything was written"),
        (lambda b: replace(b, address=b.address - 64), "found", "is not where, or not what"),
        (lambda b: replace(b, size=b.size - 1), "found", "is not where, or not what"),
    ],
)
def test_a_buffer_is_found_as_it_was_left(change, rule, why):
    c = compiled(300)
    findings = verify_program(changed(c.program, change), c.machine)
    assert any(f.rule == rule and why in f.message for f in findings)


def test_nothing_may_lie_over_what_is_left():
    c = compiled(300)
    at = next(n for n, k in enumerate(c.program.kernels) if any(b.found for b in k.buffers))
    kernels = list(c.program.kernels)
    over = Buffer("over", "gbuf", "f64", 8, 1, c.machine.gbuf_bytes - 64)
    kernels.insert(at, replace(kernels[0], name="between", buffers=(over,), tokens=(), body=()))
    findings = verify_program(replace(c.program, kernels=tuple(kernels)), c.machine)
    assert any("no kernel before left it there" in f.message for f in findings)


def test_what_is_left_must_be_written():
    c = compiled(300)
    kernels = list(c.program.kernels)
    name = next(b.name for k in kernels for b in k.buffers if b.found)
    at = next(n for n, k in enumerate(kernels) if any(b.name == name for b in k.buffers))
    kernels[at] = replace(kernels[at], body=())
    findings = verify_program(replace(c.program, kernels=tuple(kernels)), c.machine)
    assert any(f.rule == "found" and "is found with 0 of its" in f.message for f in findings)
    assert any(f.rule == "defined" and "is not whole here" in f.message for f in findings)


def lives(found: Stack, left: Stack, size: int, batch: int) -> float:
    """The most bytes at once of two stacks of which neither is empty, iteration by iteration."""
    most = 0.0
    for low in range(0, batch, size):
        mine = range(low, low + size)
        used_up = low // found.slot if low < found.samples else found.samples // found.slot
        begun = sum(
            any(s in mine or s < low for s in range(first, first + left.slot))
            for first in range(batch - left.samples, batch, left.slot)
        )
        there = found.samples // found.slot - used_up
        if there and begun:
            most = max(most, there * found.slot_bytes + begun * left.slot_bytes)
    return most


@given(
    st.sampled_from([1, 2, 4]),
    st.sampled_from([1, 2, 4]),
    st.sampled_from([1, 2, 4]),
    st.integers(1, 4),
    st.integers(1, 4),
    st.integers(1, 9),
    st.integers(1, 9),
)
def test_what_is_left_takes_the_place_of_what_was_found(size, f, m, found, left, big, other):
    one = Stack(found * max(f, size), max(f, size), float(big))
    two = Stack(left * max(m, size), max(m, size), float(other))
    assert together(one, two, size, 16) == lives(one, two, size, 16)


def test_stacks_share_slots():
    """Some group finds and leaves more samples than there are, in less room than both take."""
    c = compiled(300)
    seen = 0
    for group, kernel in zip(c.lowered.groups, kernels_of(c), strict=True):
        ends = [[b for b in kernel.buffers if b.name == n] for n in names_of(c, group)]
        if not all(ends) or group.found_samples + group.left_samples <= 8:
            continue
        (found,), (left,) = ends
        spans = [(b.address, b.address + b.size * b.depth * 8) for b in (found, left)]
        seen += spans[0][0] < spans[1][1] and spans[1][0] < spans[0][1]
    assert seen


def kernels_of(c: Compilation) -> list[Kernel]:
    """The kernel of each group."""
    named = {k.name: k for k in c.program.kernels}
    nodes = {n.name: n for n in c.lowered.nodes}
    return [
        named[next(n for n in group.nodes if nodes[n].op != "reshape")]
        for group in c.lowered.groups
    ]


def names_of(c: Compilation, group: Group) -> tuple[str, str]:
    """The buffers that a group finds and leaves."""
    number = c.lowered.groups.index(group)
    return f"h{number - 1}", f"h{number}"


def passing(run: Run) -> Iterator[int]:
    """The first sample of each iteration."""
    return (run.part.start + k * run.part.size for k in range(run.count))


def in_slots(run: Run, handed: Handed) -> list[int]:
    """The same, as slots and places in them say; each iteration lies in one slot."""
    loops = {"r": run.rounds, "i": run.part.count}
    first = (var("r") * run.part.count + var("i")) * run.part.size + run.part.start
    slot, ahead = replace(handed, elements=1).at(first, loops)
    found = []
    for r, i in product(*map(range, loops.values())):
        inside = ahead.at({"r": r, "i": i})
        assert 0 <= inside <= handed.slot - run.part.size
        found.append(handed.first + slot.at({"r": r, "i": i}) * handed.slot + inside)
    return found


@pytest.mark.parametrize("batch", [8, 12])
def test_iterations_pass_every_sample_once_and_tear_no_slot(batch):
    sizes = [s for s in (1, 2, 3, 4) if batch % s == 0]
    for size, f, m in product(sizes, sizes, sizes):
        f, m = lcm(size, f), lcm(size, m)
        for found, left in product(range(0, batch + 1, f), range(0, batch + 1, m)):
            group = Group(("a",), size, found_samples=found, left_samples=left)
            region = Region("h", "f32", 1)
            ends = Handed("t", 0, found, region, False, f), Handed("u", 0, left, region, False, m)
            passage = Passage(ends[:1] if found else (), ends[1:] if left else ())
            passed = []
            for run in runs_of(batch, size, group, passage):
                for low in passing(run):
                    passed += range(low, low + run.part.size)
                    assert run.finds == (low < found)
                    assert run.leaves == (low >= batch - left)
                for end in ends:
                    if end.samples and (run.finds if end.tensor == "t" else run.leaves):
                        where = replace(end, first=0 if end is ends[0] else batch - left)
                        assert in_slots(run, where) == list(passing(run))
            assert passed == list(range(batch))
