"""Laws of choice and placement, against searches written here from the definitions."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations, pairwise, permutations
from math import ceil

import numpy as np
from hypothesis import assume, event, given, settings
from hypothesis import strategies as st
from serialised import run_serialised

from ccnn.compiler.codegen.packing import Rectangle, pack
from ccnn.passes.graph import Builder, Graph
from ccnn.passes.interpret import interpret
from ccnn.passes.serialize_minibatch import SerializeMinibatch
from ccnn.passes.traffic import estimate

ELEMENT = 2


@dataclass(frozen=True)
class Block:
    """A matrix product to so many columns; with a shortcut, what it reads is added to it."""

    columns: int
    shortcut: bool


plain = st.builds(Block, st.integers(1, 40), st.just(False))
blocks = st.builds(
    lambda first, rest: [first, *rest],
    plain,  # the input of the network is no cut that a shortcut leads across
    st.lists(st.builds(Block, st.integers(1, 40), st.booleans()), max_size=11),
)


def widths(first: int, chain: list[Block]) -> list[int]:
    """Columns in front of each block, and at the end."""
    found = [first]
    for block in chain:
        found.append(found[-1] if block.shortcut else block.columns)
    return found


def graph_of(batch: int, first: int, chain: list[Block]) -> Graph:
    b = Builder("chain")
    x = b.input("x", (batch, first))
    columns, rng = widths(first, chain), np.random.default_rng(0)
    for k, (block, (inner, outer)) in enumerate(zip(chain, pairwise(columns), strict=True)):
        w = b.declare(f"w{k}", (inner, outer), "parameter", data=rng.normal(0, 1, (inner, outer)))
        y = b.emit("matmul", [x, w], trans_a=False, trans_b=False, name=f"m{k}")
        if block.shortcut:
            y = b.emit("map", [y, x], exprs=("a + b",), dtypes=("float",), name=f"s{k}")
        x = y
    return b.build([x])


def least_traffic(batch: int, first: int, chain: list[Block], buffer: int) -> float:
    """The least bytes of all ways to cut the chain into groups (Lym et al. 2019, section 4).

    A group moves what it reads and what it leaves once, and its weights once an iteration.  A
    block alone outside a group sends its sum with the shortcut through DRAM as well.
    """
    columns = widths(first, chain)

    def cost(i: int, j: int) -> float:
        weights = sum(a * b for a, b in pairwise(columns[i : j + 1]))
        once = batch * (columns[i] + columns[j]) + weights
        choices = []
        if j == i + 1:
            choices.append(once + batch * 3 * columns[i] * chain[i].shortcut)
        space = 0  # elements of a sample
        for k in range(i, j):
            into = columns[k] if k > i or chain[k].shortcut else 0
            out = columns[k + 1] if k < j - 1 else 0
            between = columns[k + 1] if chain[k].shortcut else 0
            space = max(space, into + between + out if chain[k].shortcut else into + out)
        most = batch if space * ELEMENT * batch <= buffer else buffer // (space * ELEMENT)
        if most:
            iterations = ceil(batch / ceil(batch / ceil(batch / min(most, batch))))
            choices.append(once + (iterations - 1) * weights)
        return min(choices, default=float("inf"))

    count = len(chain)
    cuts = ([0, *c, count] for n in range(count) for c in combinations(range(1, count), n))
    return ELEMENT * min(sum(cost(i, j) for i, j in pairwise(c)) for c in cuts)


@given(blocks, st.integers(1, 9), st.integers(1, 40), st.integers(1, 2000))
@settings(max_examples=60, deadline=None)
def test_the_exact_grouping_of_a_chain_of_blocks_is_the_best_there_is(chain, batch, first, buffer):
    graph = graph_of(batch, first, chain)
    options = SerializeMinibatch(buffer, mode="mbs2", keep=False, most_units=10**6)
    grouped = options(graph)
    greedy = SerializeMinibatch(buffer, mode="mbs2", keep=False, most_units=10**6, method="greedy")(
        graph
    )
    best = least_traffic(batch, first, chain, buffer)
    assert estimate(grouped).total == best
    assert estimate(greedy).total >= best
    uneven = [g for g in grouped.groups if g.sub_batch and batch % g.sub_batch]
    event(f"looped: {any(g.sub_batch for g in grouped.groups)}, uneven: {bool(uneven)}")
    values = {**graph.data, "x": np.random.default_rng(1).normal(0, 1, (batch, first))}
    run, expected = run_serialised(grouped, values), interpret(graph, values)
    np.testing.assert_allclose(run.values[graph.outputs[0]], expected[graph.outputs[0]], rtol=1e-9)
    assert run.read + run.written == best


def test_sub_batches_of_unequal_size_are_met():
    chain = [Block(2, False), Block(2, False)]
    (group,) = SerializeMinibatch(13, mode="mbs2", keep=False)(graph_of(7, 2, chain)).groups
    assert group.sub_batch == 3  # 4 bytes a sample, three fit: 3, 3 and 1


lives = st.tuples(st.integers(0, 9), st.integers(1, 6), st.integers(1, 12))


def rectangles(found: list[tuple[int, int, int]]) -> tuple[Rectangle, ...]:
    return tuple(
        Rectangle(f"r{k}", begin, begin + length, 64 * size)
        for k, (begin, length, size) in enumerate(found)
    )


def live_bytes(found: tuple[Rectangle, ...]) -> int:
    return max(sum(r.size for r in found if r.begin <= t < r.end) for t in range(20))


def height(placed: tuple[Rectangle, ...]) -> int:
    return max(r.address + r.size for r in placed)


def check_apart(found: tuple[Rectangle, ...], placed: tuple[Rectangle, ...]) -> None:
    """The same rectangles, none on another while both live."""
    assert [(r.name, r.begin, r.end, r.size) for r in sorted(placed, key=lambda r: r.name)] == [
        (r.name, r.begin, r.end, r.size) for r in sorted(found, key=lambda r: r.name)
    ]
    for a, b in combinations(placed, 2):
        together = a.begin < b.end and b.begin < a.end
        meet = a.address < b.address + b.size and b.address < a.address + a.size
        assert not (together and meet), (a, b)
    assert all(r.address >= 0 and r.address % 64 == 0 for r in placed)


def least_height(found: tuple[Rectangle, ...]) -> int:
    """The lowest of all packings: some order of dropping each as low as it goes attains it."""
    best = sum(r.size for r in found)
    for order in permutations(found):
        placed: list[tuple[Rectangle, int]] = []
        for r in order:
            at = 0
            for low, high in sorted(
                (a, a + o.size) for o, a in placed if o.begin < r.end and r.begin < o.end
            ):
                if low >= at + r.size:
                    break
                at = max(at, high)
            placed.append((r, at))
            if at + r.size >= best:
                break
        else:
            best = max(at + r.size for r, at in placed)
    return best


@given(st.lists(lives, min_size=1, max_size=6))
@settings(max_examples=60, deadline=None)
def test_a_few_regions_are_placed_as_low_as_any_placement_or_nearly(found):
    regions = rectangles(found)
    placed = pack(regions)
    check_apart(regions, placed)
    assert height(placed) <= max(1.1 * live_bytes(regions), least_height(regions))


@given(st.lists(lives, min_size=7, max_size=40))
@settings(max_examples=60, deadline=None)
def test_regions_fit_where_the_sum_of_lives_does_with_a_tenth_to_spare(found):
    regions = rectangles(found)
    assume(max(r.size for r in regions) <= live_bytes(regions) / 3)  # many small ones, as in groups
    placed = pack(regions)
    check_apart(regions, placed)
    assert height(placed) <= 1.1 * live_bytes(regions)
