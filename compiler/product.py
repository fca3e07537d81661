"""The command `ccnn map`: one GEMM by hand, as text or JSON."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, TextIO

from rich.table import Table
from rich.text import Text

from ccnn.compiler.cut import Triple, triple_text
from ccnn.compiler.failure import ExitCode, Failure
from ccnn.compiler.files import read_bytes
from ccnn.compiler.lists import print_json
from ccnn.compiler.mapper.array import ArrayMapping, Figure, Product, Rules
from ccnn.compiler.mapper.array_cache import map_products
from ccnn.compiler.mapper.array_cost import price_cut
from ccnn.compiler.mapper.array_energy import price
from ccnn.compiler.mapper.array_search import map_product
from ccnn.compiler.mapper.array_text import parse_cut, print_cut
from ccnn.compiler.mapping import MappingError
from ccnn.compiler.report.show import console_for
from ccnn.targets.machine import Machine, load_machine

SCHEMA_VERSION = 2
UNITS = {"time": "cycles", "traffic": "bytes moved", "energy": "pJ"}
FLOORS = {
    "time": "MACs over PEs, words over ports",
    "traffic": "each operand and result once",
    "energy": "each operand and result once, MACs, static power",
}


def show_product(
    sizes: tuple[int, int, int],
    target: str,
    rules: Rules,
    mapper: str,
    pinned: Path | None,
    *,
    as_json: bool,
    keep: bool = True,
) -> None:
    """Map a GEMM, or price the cut in the file `pinned`, and print what it takes.

    `keep` finds a mapping that was solved before in the cache, and leaves it there.
    """
    machine = load_machine(target)
    whole = Product(*sizes)

    def solve(product: Product) -> ArrayMapping:
        if mapper == "exact":
            return map_products([product], machine, rules, keep)[0]
        return map_product(product, machine, rules, mapper)

    cores, mapping = min(
        ((share, solve(share.part)) for share in shares(whole, machine, rules)),
        key=lambda each: (each[1].value + each[0].value, each[1].cycles + each[0].cycles),
    )
    if pinned is not None:
        mapping = _pinned(pinned, cores.part, machine, rules, mapping)
    if as_json:
        print_json(mapping_facts(mapping, rules) | cores.facts(whole))
    else:
        show_mapping(mapping, rules, sys.stdout, cores.rows())


@dataclass(frozen=True)
class Share:
    """What each core of a machine has of a GEMM, and what putting the parts together takes.

    Parts of K are sums that every core fetches from the memory of the others and adds to its own.
    """

    part: Product
    split: Triple
    cycles: int = 0
    dram_bytes: int = 0
    value: Figure = 0
    """Of the objective."""

    def facts(self, whole: Product) -> dict[str, Any]:
        """As JSON values: sizes of the whole GEMM, and those of a core's part."""
        m, n, k = whole.sizes
        return {
            "m": m,
            "n": n,
            "k": k,
            "cores_mnk": list(self.split),
            "core_mnk": list(self.part.sizes),
            "exchange_cycles": self.cycles,
            "exchange_bytes": self.dram_bytes,
        }

    def rows(self) -> list[tuple[str, str, str]]:
        """Lines about the cores, where there are several."""
        if prod(self.split) == 1:
            return []
        words = f"each with this GEMM, {triple_text(self.split)} parts of M, N, K"
        found = [("cores", str(prod(self.split)), words)]
        if self.split[2] > 1:
            fetched = f"and {self.dram_bytes:,} bytes of DRAM, for sums of the other parts of K"
            found.append(("  exchange", f"{self.cycles:,}", f"cycles {fetched}"))
        return found


def shares(product: Product, machine: Machine, rules: Rules) -> list[Share]:
    """A GEMM over the cores of a machine: cut along M, or along K."""
    cores, (m, n, k) = machine.cores, product.sizes
    if cores == 1:
        return [Share(product, (1, 1, 1))]
    words = (cores - 1) * m * n
    moved = words * rules.word_bytes
    cycles = 0
    if not rules.ideal_memory:
        cycles = -(-moved // machine.bytes_per_cycle) + -(-words // machine.lanes)
    energy = moved * (price(machine, "dram_byte") + price(machine, "gbuf_byte"))
    energy += words * price(machine, "vector_op") + cycles * price(machine, "static_cycle")
    value = {"time": cycles, "traffic": 2 * moved, "energy": energy}[rules.objective]
    return [
        Share(Product(-(-m // cores), n, k), (cores, 1, 1)),
        Share(Product(m, n, -(-k // cores)), (1, 1, cores), cycles, moved, value),
    ]


def _pinned(
    path: Path, product: Product, machine: Machine, rules: Rules, best: ArrayMapping
) -> ArrayMapping:
    """The file's cut, priced and held against the bound of the search."""
    from ccnn.compiler.mapper.array import with_bound

    try:
        text = read_bytes(path).decode("utf-8")
        read, cut = parse_cut(text, machine, rules)
    except UnicodeDecodeError as error:
        raise Failure(ExitCode.INPUT, f"{path} is not UTF-8 text; save it as UTF-8") from error
    except MappingError as error:
        raise Failure(ExitCode.INPUT, f"{path}: {error}") from error
    if read != product:
        raise Failure(
            ExitCode.INPUT,
            f"{path} maps the GEMM {read.m} x {read.n} x {read.k}, not "
            f"{product.m} x {product.n} x {product.k}; give those sizes, or another file",
        )
    return with_bound(price_cut(product, machine, rules, cut, "pinned"), best.bound)


def mapping_facts(mapping: ArrayMapping, rules: Rules) -> dict[str, Any]:
    """The mapping as JSON values; units are in the keys."""
    cut = mapping.cut
    busy = max(cut.cycles, 1)
    return {
        "schema_version": SCHEMA_VERSION,
        "machine": mapping.machine,
        "mapper": mapping.mapper,
        "m": mapping.product.m,
        "n": mapping.product.n,
        "k": mapping.product.k,
        "macs": mapping.product.macs,
        "ideal_memory": rules.ideal_memory,
        "fill_drain": rules.fill_drain,
        "flow": cut.flow.name,
        "groups_mnk": list(cut.groups),
        "units_mnk": list(cut.units),
        "part_mnk": list(cut.part),
        "waves": [{"rows": rows, "count": count} for rows, count in cut.waves],
        "strips": [
            {
                "width": strip.width,
                "count": strip.count,
                "blocks": [
                    {"mode": r.mode, "depth": r.depth, "count": r.count, "cycles_each": r.cycles}
                    for r in strip.runs
                ],
            }
            for strip in cut.strips
        ],
        "mode_share": {name: c / busy for name, c in sorted(mapping.mode_cycles.items())},
        "cycles": mapping.cycles,
        "array_cycles": mapping.array_cycles,
        "fill_cycles": mapping.fill_cycles,
        "reduce_cycles": mapping.reduce_cycles,
        "dram_cycles": mapping.dram_cycles,
        "utilisation": mapping.utilisation,
        "a_words": mapping.words.a,
        "b_words": mapping.words.b,
        "result_words": mapping.words.result,
        "buffer_bytes": mapping.buffer_bytes,
        "dram_bytes": mapping.dram_bytes,
        "objective": rules.objective,
        "value": float(mapping.value),
        "bound": float(mapping.bound),
        "floor": float(mapping.floor),
        "gap": float(mapping.gap),
    }


def show_mapping(
    mapping: ArrayMapping, rules: Rules, out: TextIO, above: Sequence[tuple[str, str, str]] = ()
) -> None:
    """The cut as text that can be fed back, then what it costs."""
    console = console_for(out)
    console.print(Text(print_cut(mapping.product, mapping.machine, mapping.cut)))
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column("", justify="left")
    table.add_column("", justify="right")
    table.add_column("", justify="left")
    for row in (*above, *_rows(mapping, rules)):
        table.add_row(*(Text(cell) for cell in row))
    console.print(table)


def _figure(value: Figure) -> str:
    return f"{round(value):,}"


def _rows(mapping: ArrayMapping, rules: Rules) -> list[tuple[str, str, str]]:
    busy = max(mapping.cut.cycles, 1)
    shares = ", ".join(
        f"{name} {100 * cycles / busy:.1f}%" for name, cycles in mapping.mode_cycles.items()
    )
    bound = "optimal" if mapping.gap == 0 else f"gap {float(mapping.gap):.2%}"
    searched = "" if mapping.mapper == "exact" else f"; the {mapping.mapper} mapping's: {bound}"
    bound = bound if mapping.mapper == "exact" else "of the exact search" + searched
    if mapping.mapper == "heuristic":
        bound = f"of any mapping; the heuristic's gap {float(mapping.gap):.2%}"
    left_out = [
        words
        for words, out in (
            ("memory ideal", rules.ideal_memory),
            ("fill and drain left out", not rules.fill_drain),
        )
        if out
    ]
    unit = UNITS[rules.objective]
    value = (
        ()
        if rules.objective == "time"
        else ((unit, _figure(mapping.value), f"least {rules.objective} is wanted"),)
    )
    return [
        ("cycles", f"{mapping.cycles:,}", "; ".join(left_out)),
        ("  array", f"{mapping.array_cycles:,}", shares),
        ("  fill and drain", f"{mapping.fill_cycles:,}", ""),
        ("  reduction", f"{mapping.reduce_cycles:,}", "of parts of K"),
        ("  DRAM", f"{mapping.dram_cycles:,}", "beside the array; the slower one counts"),
        *value,
        ("bound", _figure(mapping.bound), bound),
        ("floor", _figure(mapping.floor), FLOORS[rules.objective]),
        ("PE use", f"{mapping.utilisation:.1%}", f"of {mapping.pes:,} PEs"),
        ("local buffers", f"{mapping.buffer_bytes:,}", "bytes to and from the global buffer"),
        ("DRAM", f"{mapping.dram_bytes:,}", "bytes"),
    ]
