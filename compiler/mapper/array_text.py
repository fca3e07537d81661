"""The cut of one GEMM as text that can be edited and fed back.

    gemm 1568 x 512 x 4608 on flexsa-1g1f
    flow b stays
    groups 1 x 1 x 1
    units 1 x 1 x 1
    waves 512 * 3, 32 * 1
    strip 128 * 4: FW 128 * 36

and ends at an empty line.  Sizes of parts are M x N x K; `size * count`; a strip names the mode
and depth of its blocks.  What is read back is checked: nothing of the GEMM left out, nothing
larger than where it goes.
"""

from __future__ import annotations

import re
from math import prod

from ccnn.compiler.mapper.array import (
    FLOWS,
    Cut,
    Product,
    Rules,
    Run,
    Strip,
    Triple,
    Waves,
    block_cycles,
    modes_of,
    part_of,
    wave_rows,
)
from ccnn.compiler.mapping import MappingError
from ccnn.targets.machine import Machine


def print_cut(product: Product, machine: str, cut: Cut) -> str:
    """The text; see the module."""
    lines = [
        f"gemm {_triple(product.sizes)} on {machine}",
        f"flow {cut.flow.name}",
        f"groups {_triple(cut.groups)}",
        f"units {_triple(cut.units)}",
        "waves " + ", ".join(f"{rows} * {count}" for rows, count in cut.waves),
    ]
    for strip in cut.strips:
        blocks = ", ".join(f"{run.mode} {run.depth} * {run.count}" for run in strip.runs)
        lines.append(f"strip {strip.width} * {strip.count}: {blocks}")
    return "\n".join(lines) + "\n"


def parse_cut(text: str, machine: Machine, rules: Rules) -> tuple[Product, Cut]:
    """The GEMM and its cut; raises MappingError with the line that is wrong."""
    lines = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            lines.append((number, line.strip()))
        elif lines:
            break  # below stands what it costs
    heads = ("gemm ", "flow ", "groups ", "units ", "waves ")
    if len(lines) < len(heads) + 1:
        raise MappingError(
            "the mapping is too short; it has lines gemm, flow, groups, units, waves and strips"
        )
    words = []
    for (number, line), head in zip(lines, heads, strict=False):
        if not line.startswith(head):
            raise MappingError(f"line {number}: '{line[:60]}' should begin with '{head.strip()}'")
        words.append(line.removeprefix(head))
    gemm, _, name = words[0].partition(" on ")
    if name != machine.name:
        raise MappingError(
            f"line {lines[0][0]}: the mapping is for machine '{name[:60]}', not {machine.name}; "
            "map the GEMM again, or choose that machine"
        )
    product = Product(*_read_triple(lines[0][0], gemm))
    flow = next((f for f in FLOWS if f.name == words[1]), None)
    if flow is None or not modes_of(machine, flow):
        usable = ", ".join(f.name for f in FLOWS if modes_of(machine, f))
        raise MappingError(f"line {lines[1][0]}: no flow '{words[1][:60]}' here; use {usable}")
    groups, units = (_read_triple(lines[i][0], words[i]) for i in (2, 3))
    waves = tuple(_read_pairs(lines[4][0], words[4]))
    part = part_of(product.sizes, groups, units)
    strips = tuple(_strip(n, line, machine, rules, waves) for n, line in lines[len(heads) :])
    cut = Cut(flow, groups, units, part, waves, strips)
    check_cut(product, machine, rules, cut)
    return product, cut


def check_cut(product: Product, machine: Machine, rules: Rules, cut: Cut) -> None:
    """Raise MappingError unless the cut is one of the GEMM and fits the machine."""
    length, width, depth = cut.flow.of(cut.part)
    for name, split, number in (
        ("groups", cut.groups, machine.groups),
        ("units", cut.units, machine.units),
    ):
        if prod(split) != number and not (rules.balanced and prod(split) == 1):
            raise MappingError(
                f"{name} {_triple(split)} are {prod(split)} parts and {machine.name} has {number} "
                f"{name}; let the three multiply to {number}"
            )
    if part_of(product.sizes, cut.groups, cut.units) != cut.part:
        raise MappingError(f"the part {_triple(cut.part)} is not the GEMM's over its parts")
    _adds_up("waves", sum(rows * count for rows, count in cut.waves), length)
    _adds_up("strips", sum(s.width * s.count for s in cut.strips), width)
    longest = max(rows for rows, _ in cut.waves)
    if cut.flow.dataflow == "ws" and not rules.uncut and longest > wave_rows(machine):
        raise MappingError(
            f"a wave of {longest} rows, and the local buffers hold {wave_rows(machine)}; "
            "cut the waves shorter"
        )
    modes = {mode.name: mode for mode in modes_of(machine, cut.flow)}
    for strip in cut.strips:
        _adds_up(
            f"blocks of the strip {strip.width}", sum(r.depth * r.count for r in strip.runs), depth
        )
        for run in strip.runs:
            mode = modes[run.mode]
            if run.depth > mode.rows or strip.width > mode.cols:
                raise MappingError(
                    f"a block of {run.depth} x {strip.width} in mode {mode.name}, which holds "
                    f"{mode.rows} x {mode.cols}; make it smaller or take another mode"
                )


def _adds_up(what: str, got: int, wanted: int) -> None:
    if got != wanted:
        raise MappingError(f"the {what} cover {got} and should cover {wanted}; change a count")


def _triple(sizes: Triple) -> str:
    return " x ".join(map(str, sizes))


def _read_triple(number: int, text: str) -> Triple:
    match = re.fullmatch(r"([0-9]{1,10}) x ([0-9]{1,10}) x ([0-9]{1,10})", text.strip())
    if not match or "0" in match.groups():
        raise MappingError(f"line {number}: '{text[:60]}' is not M x N x K, as in 64 x 32 x 16")
    m, n, k = (int(digits) for digits in match.groups())
    return m, n, k


def _read_pairs(number: int, text: str) -> Waves:
    found = []
    for piece in text.split(","):
        match = re.fullmatch(r"([1-9][0-9]{0,9}) \* ([1-9][0-9]{0,9})", piece.strip())
        if not match:
            raise MappingError(
                f"line {number}: '{piece.strip()[:60]}' is not size * count, as in 128 * 3"
            )
        found.append((int(match[1]), int(match[2])))
    return tuple(found)


def _strip(number: int, line: str, machine: Machine, rules: Rules, waves: Waves) -> Strip:
    head, colon, blocks = line.partition(":")
    if not head.startswith("strip ") or not colon:
        raise MappingError(f"line {number}: '{line[:60]}' should be 'strip 64 * 2: FW 64 * 3'")
    ((width, count),) = _read_pairs(number, head.removeprefix("strip "))[:1]
    modes = {mode.name: mode for mode in machine.array_modes}
    runs = []
    for piece in blocks.split(","):
        name, _, size = piece.strip().partition(" ")
        if name not in modes:
            raise MappingError(
                f"line {number}: no mode '{name[:60]}' on {machine.name}; it has {', '.join(modes)}"
            )
        ((depth, many),) = _read_pairs(number, size)
        cycles = block_cycles(machine, rules, modes[name], waves, depth)
        runs.append(Run(name, depth, many, cycles))
    return Strip(width, count, tuple(runs))
