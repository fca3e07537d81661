"""A mapping given by hand: its tilings and cuts held against the GEMMs and the machine."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from difflib import get_close_matches

import numpy as np

from ccnn.compiler.codegen.gemm import Gemm
from ccnn.compiler.codegen.lanes import may_use_lanes
from ccnn.compiler.cut import FLOWS, LANES, flow_named, triple_text
from ccnn.compiler.mapper.array import Product, Rules
from ccnn.compiler.mapper.array_text import check_cut, with_cycles
from ccnn.compiler.mapper.cuts import usable_flows
from ccnn.compiler.mapper.pairs import as_paired
from ccnn.compiler.mapper.price import traffic, work
from ccnn.compiler.mapper.tables import make_tables
from ccnn.compiler.mapping import Mapping, MappingError, Tiling
from ccnn.targets.machine import Machine


def check_pinned(pinned: Mapping, machine: Machine, known: Iterable[str]) -> None:
    """Raise MappingError unless the mapping is one for the machine and names GEMMs of the graph.

    A cut is checked with the rules of a compiled program: one part, waves that fit the buffers.
    """
    if pinned.machine != machine.name:
        raise MappingError(
            f"the mapping is for machine '{pinned.machine[:60]}', not {machine.name}; choose that "
            "machine, or map anew"
        )
    names = list(known)
    for name in pinned.tilings:
        if name not in names:
            close = get_close_matches(name, names, 1)
            hint = f"; did you mean '{close[0]}'" if close else ""
            raise MappingError(
                f"the mapping has a tiling for '{name[:60]}', and no GEMM of this step is called "
                f"so{hint}; leave its line out, and it is mapped anew"
            )
    for (sizes, _), cut in pinned.cuts.items():
        try:
            check_cut(Product(*sizes), machine, Rules(), with_cycles(cut, machine, Rules()))
        except MappingError as error:
            raise MappingError(f"the cut of {triple_text(sizes)}: {error}") from error


def pinned_tiling(
    gemm: Gemm, name: str, machine: Machine, pinned: Mapping, grouped: bool = False
) -> Tiling | None:
    """The tiling the mapping gives a GEMM, with the bytes it really moves; None when it has none.

    Raises MappingError for one that no code can be written for.
    """
    tiling = pinned.tilings.get(name)
    if tiling is None:
        return None
    if tiling.order not in gemm.orders:
        orders = " or ".join(",".join(order) for order in gemm.orders)
        raise _wrong(name, f"the order {','.join(tiling.order)}", f"use {orders}")
    tile = dict(tiling.tiles)
    for level in gemm.levels.values():
        size = tile[level.name]
        if size > level.total or (size % level.multiple and size != level.total):
            step = f", a multiple of {level.multiple}" if level.multiple > 1 else ""
            raise _wrong(name, f"{level.name}={size}", f"use 1 to {level.total}{step}")
    if gemm.grouped and tile["g"] > 1 and any(tile[n] < gemm.levels[n].total for n in gemm.grouped):
        whole = " ".join(f"{n}={gemm.levels[n].total}" for n in gemm.grouped)
        raise _wrong(name, f"g={tile['g']}", f"use g=1, or whole groups with {whole}")
    flows = FLOWS[:1] if gemm.turns > 1 else usable_flows(gemm, tiling, machine, grouped)
    usable = [flow.name for flow in flows]
    usable += [LANES] if gemm.turns == 1 and may_use_lanes(gemm.node) else []
    if tiling.flow not in usable:
        raise _wrong(name, f"the flow '{tiling.flow}'", f"use {', '.join(usable)}")
    if tiling.pieces < 1 or machine.acc_rows % tiling.pieces:
        raise _wrong(name, f"pieces {tiling.pieces}", f"use a divisor of {machine.acc_rows}")
    if tiling.pieces > 1 and gemm.turns > 1:
        raise _wrong(name, f"pieces {tiling.pieces}", "both gradients at once share them out")
    if tiling.pieces > 1 and (tiling.on_lanes or flow_named(tiling.flow).dataflow != "ws"):
        advice = "only waves past weights that stay in the array are cut"
        raise _wrong(name, f"pieces {tiling.pieces}", advice)
    if tiling.depth < 1:
        raise _wrong(name, f"depth {tiling.depth}", "use 1, or 2 for double buffers")
    moved = _bytes(gemm, machine, tiling)
    # what is proven of the mapper's own tiling may be wrong of another
    bound = tiling.bound if moved == tiling.dram_bytes else 0
    return replace(tiling, dram_bytes=moved, bound=bound)


def _bytes(gemm: Gemm, machine: Machine, tiling: Tiling) -> int:
    """DRAM bytes under the placement rule."""
    tables = make_tables(gemm, {name: [size] for name, size in tiling.tiles})
    index = {name: np.zeros(1, np.int64) for name in gemm.levels}
    done = work(tables, as_paired(machine) if gemm.turns > 1 else machine, index)
    return int(traffic(tables, index, done, tiling.order).dram[0])


def _wrong(name: str, what: str, advice: str) -> MappingError:
    return MappingError(f"the tiling of '{name}' has {what}, which cannot be; {advice}")
