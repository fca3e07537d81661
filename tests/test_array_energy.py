"""What the mapping of a GEMM says of buffers and energy, and mappings kept between runs."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ccnn.compiler import cache
from ccnn.compiler.codegen import generate, make_context
from ccnn.compiler.mapper import array_cache
from ccnn.compiler.mapper.array import ArrayMapping, Product, Rules
from ccnn.compiler.mapper.array_cache import map_products
from ccnn.compiler.mapper.array_energy import count_actions, energy_pj
from ccnn.compiler.mapper.array_search import map_product
from ccnn.compiler.mapping import Mapping, Tiling
from ccnn.passes.graph import Builder
from ccnn.targets.machine import Machine, load_machine
from ccnn.targets.modes import Mode
from ccnn.targets.simulator import Trace, simulate

MODES = (
    Mode("FW", 4, 4),
    Mode("VSW", 4, 2, 2),
    Mode("HSW", 2, 4, 2, stationary="copies"),
    Mode("ISW", 2, 2, 4),
)
MACHINES = {
    "plain": load_machine("tiny"),
    "flex": replace(load_machine("tiny"), modes=MODES),
}
FLOAT32 = Rules(word_bytes=4)


def executed(m: int, n: int, k: int, machine: Machine) -> Trace:
    """One matmul in one tile, through the code generator and its own rule for modes."""
    b = Builder("gemm")
    y = b.emit("matmul", [b.input("a", (m, k)), b.input("b", (k, n))], trans_a=False, trans_b=False)
    context = make_context(b.build([y]), machine, "float32")
    tiling = Tiling(("m", "n", "k"), (("m", m), ("n", n), ("k", k)), 1)
    return simulate(generate(context, Mapping(machine.name, {y: tiling})), machine)


@pytest.mark.parametrize("name", MACHINES)
@settings(max_examples=25, deadline=None, derandomize=True)
@given(m=st.integers(1, 8), n=st.integers(1, 11), k=st.integers(1, 11))
def test_actions_are_those_of_the_executed_program(name: str, m: int, n: int, k: int):
    """Of the same cut: waves of the whole length, tiles of the array's size."""
    machine = replace(MACHINES[name], acc_rows=8, lbuf_h_rows=8)
    mapping = map_product(Product(m, n, k), machine, FLOAT32, "heuristic")
    trace = executed(m, n, k, machine)
    counts = {action: count for action, count, _ in trace.energy}
    found = count_actions(mapping, machine, FLOAT32)
    assert found == {action: counts[action] for action in found}
    prices = {action: pj for action, _, pj in trace.energy}
    assert energy_pj(mapping, machine, FLOAT32) == pytest.approx(
        {action: prices[action] for action in found}
    )


def test_actions_of_a_stationary_result_by_hand():
    """No block is written to accumulators but once; both operands pass the local buffers."""
    machine = replace(load_machine("intergrad-32"), weight_buffers=1)
    mapping = map_product(Product(16, 16, 32000), machine, Rules(ideal_memory=True))
    assert mapping.cut.flow.dataflow == "os"
    found = count_actions(mapping, machine, Rules())
    assert found["lbuf_byte"] == 2 * 2 * (16 * 32000 * 2)
    assert found["acc_byte"] == 16 * 16 * 4
    assert found["mac_16bit"] == 16 * 16 * 32000


# kept between runs

PRODUCTS = [Product(100, 70, 30), Product(33, 200, 64), Product(100, 70, 30)]


@pytest.fixture
def solved(tmp_path, monkeypatch) -> list[Product]:
    """A cache of the test's own; the GEMMs that were solved, in order."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    seen: list[Product] = []

    def watched(product: Product, *rest) -> ArrayMapping:
        seen.append(product)
        return map_product(product, *rest)

    monkeypatch.setattr(array_cache, "map_product", watched)
    return seen


@pytest.mark.parametrize("name", ["flexsa-1g1f", "flexsa-4g4c", "intergrad-32"])
@pytest.mark.parametrize("rules", [Rules(), Rules(balanced=True, uncut=True, whole_shift=True)])
def test_what_was_solved_is_found_again(solved: list[Product], name: str, rules: Rules):
    machine = load_machine(name)
    first = map_products(PRODUCTS, machine, rules)
    assert solved == PRODUCTS[:2]
    assert map_products([*PRODUCTS, Product(5, 5, 5)], machine, rules)[:3] == first
    assert solved == [*PRODUCTS[:2], Product(5, 5, 5)]
    assert map_products([Product(5, 5, 5)], machine, rules)[0].gap == 0
    assert len(solved) == 3
    assert first == [map_product(product, machine, rules) for product in PRODUCTS]


def test_another_machine_or_rule_finds_nothing(solved: list[Product]):
    machine = load_machine("wavecore")
    map_products(PRODUCTS[:1], machine)
    map_products(PRODUCTS[:1], replace(machine, acc_rows=100))
    map_products(PRODUCTS[:1], machine, Rules(ideal_memory=True))
    map_products(PRODUCTS[:1], machine, keep=False)
    assert len(solved) == 4


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace("bound ", "bound x"),
        lambda text: text.replace("bound ", "bound -"),
        lambda text: text.replace(": FW ", ": FW 1"),
        lambda text: text.replace("stays", "moves"),
        lambda text: "\n\n\nbound",
        lambda text: text[: len(text) // 2],
    ],
)
def test_what_is_no_mapping_is_solved_again(solved: list[Product], monkeypatch, change):
    machine = load_machine("wavecore")
    (right,) = map_products(PRODUCTS[:1], machine)
    read = cache.get
    monkeypatch.setattr(cache, "get", lambda *key: change(read(*key)))
    assert map_products(PRODUCTS[:1], machine) == [right]
    assert len(solved) == 2
