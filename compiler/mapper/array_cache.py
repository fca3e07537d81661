"""The best mappings of many GEMMs, each solved once, and kept between runs.

An entry of the cache holds all GEMMs that were ever mapped on one machine under the same rules, as
texts that `parse_cut` reads, each behind a line with its bound.  What is read back is checked and
priced as if it were written by hand; the cycles of an entry are nowhere believed.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from ccnn.compiler import cache
from ccnn.compiler.mapper.array import ArrayMapping, Product, Rules, with_bound
from ccnn.compiler.mapper.array_cost import price_cut
from ccnn.compiler.mapper.array_search import map_product
from ccnn.compiler.mapper.array_text import parse_cut, print_cut
from ccnn.compiler.mapping import MappingError
from ccnn.targets.machine import Machine

KIND = "gemms"
MOST = 16384
"""GEMMs of an entry; a fuller one is begun anew."""


def map_products(
    products: Sequence[Product], machine: Machine, rules: Rules | None = None, keep: bool = True
) -> list[ArrayMapping]:
    """The exact mapping of each GEMM; `keep` finds them on disk and leaves them there.

    Raises MappingError for a GEMM that no mapping fits.
    """
    rules = rules or Rules()
    key = f"{machine.fingerprint} {rules}".encode()
    known = _blocks((cache.get(KIND, key) or "") if keep else "")
    found: dict[Product, ArrayMapping] = {}
    new: dict[Product, str] = {}
    for product in dict.fromkeys(products):
        mapping = _read(known.get(product.sizes), product, machine, rules)
        if mapping is None:
            mapping = map_product(product, machine, rules)
            new[product] = f"bound {mapping.bound}\n{print_cut(product, machine.name, mapping.cut)}"
        found[product] = mapping
    if keep and new:
        old = known if len(known) + len(new) <= MOST else {}
        texts = old | {product.sizes: text for product, text in new.items()}
        cache.put(KIND, key, "\n".join(texts.values()))
    return [found[product] for product in products]


def _blocks(text: str) -> dict[tuple[int, ...], str]:
    """The texts of an entry by M, N and K."""
    found = {}
    for block in text.split("\n\n"):
        words = block.split("\n", 2)[1].split(" on ")[0].split() if "\n" in block else []
        if len(words) == 6 and all(size.isdecimal() for size in words[1::2]):
            found[tuple(int(size) for size in words[1::2])] = block.rstrip("\n") + "\n"
    return found


def _read(
    block: str | None, product: Product, machine: Machine, rules: Rules
) -> ArrayMapping | None:
    """The mapping that a text amounts to; None when there is none, or none of this GEMM."""
    if block is None:
        return None
    head, _, text = block.partition("\n")
    try:
        read, cut = parse_cut(text, machine, rules)
        exact = Fraction(head.removeprefix("bound "))
    except (MappingError, ValueError, ZeroDivisionError):
        return None
    bound = int(exact) if exact.denominator == 1 else exact
    mapping = price_cut(product, machine, rules, cut, "exact")
    # a bound below the floor, or above what the cut takes, is of no mapping of ours
    return with_bound(mapping, bound) if mapping.floor <= bound and read == product else None
