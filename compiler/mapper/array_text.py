"""The cut of one GEMM as text that can be edited and fed back; compiler/cut.py shows one.

It ends at an empty line.  What is read back is checked: nothing of the GEMM left out, nothing
larger than where it goes.
"""

from __future__ import annotations

from dataclasses import replace
from math import prod

from ccnn.compiler.cut import (
    HEADS,
    Cut,
    Lines,
    MappingError,
    Strip,
    cut_text,
    part_of,
    read_cut,
    triple_text,
)
from ccnn.compiler.mapper.array import Product, Rules, block_cycles, flows, modes_of, wave_rows
from ccnn.targets.machine import Machine


def print_cut(product: Product, machine: str, cut: Cut) -> str:
    """The text; see the module."""
    return cut_text(product.sizes, machine, cut)


def parse_cut(text: str, machine: Machine, rules: Rules) -> tuple[Product, Cut]:
    """The GEMM and its cut; raises MappingError with the line that is wrong."""
    lines = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            lines.append((number, line.strip()))
        elif lines:
            break  # below stands what it costs
    sizes, name, cut = read_cut(lines)
    if name != machine.name:
        raise MappingError(
            f"line {lines[0][0]}: the mapping is for machine '{name[:60]}', not {machine.name}; "
            "map the GEMM again, or choose that machine"
        )
    product = Product(*sizes)
    cut = with_cycles(cut, machine, rules, lines)
    check_cut(product, machine, rules, cut)
    return product, cut


def with_cycles(cut: Cut, machine: Machine, rules: Rules, lines: Lines = ()) -> Cut:
    """The cut with the cycles of its blocks; MappingError when the machine lacks what it names."""
    if cut.flow not in flows(machine):
        usable = ", ".join(f.name for f in flows(machine))
        where = f"line {lines[1][0]}: " if lines else ""
        raise MappingError(f"{where}no flow '{cut.flow.name}' here; use {usable}")
    modes = {mode.name: mode for mode in machine.array_modes}
    strips = []
    for i, strip in enumerate(cut.strips):
        for run in strip.runs:
            if run.mode not in modes:
                where = f"line {lines[len(HEADS) + i][0]}: " if lines else ""
                raise MappingError(
                    f"{where}no mode '{run.mode[:60]}' on {machine.name}; it has {', '.join(modes)}"
                )
        runs = [
            replace(r, cycles=block_cycles(machine, rules, modes[r.mode], cut.waves, r.depth))
            for r in strip.runs
        ]
        strips.append(Strip(strip.width, strip.count, tuple(runs)))
    return replace(cut, strips=tuple(strips))


def check_cut(product: Product, machine: Machine, rules: Rules, cut: Cut) -> None:
    """Raise MappingError unless the cut is one of the GEMM and fits the machine."""
    length, width, depth = cut.flow.of(cut.part)
    for name, split, number in (
        ("groups", cut.groups, machine.groups),
        ("units", cut.units, machine.units),
    ):
        if prod(split) != number and not (rules.balanced and prod(split) == 1):
            raise MappingError(
                f"{name} {triple_text(split)} are {prod(split)} parts and {machine.name} has "
                f"{number} {name}; let the three multiply to {number}"
            )
    if part_of(product.sizes, cut.groups, cut.units) != cut.part:
        raise MappingError(f"the part {triple_text(cut.part)} is not the GEMM's over its parts")
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
            mode = modes.get(run.mode)
            if mode is None:
                raise MappingError(
                    f"mode {run.mode} is none of those of '{cut.flow.name}': {', '.join(modes)}"
                )
            if run.depth > mode.rows or strip.width > mode.cols:
                raise MappingError(
                    f"a block of {run.depth} x {strip.width} in mode {mode.name}, which holds "
                    f"{mode.rows} x {mode.cols}; make it smaller or take another mode"
                )


def _adds_up(what: str, got: int, wanted: int) -> None:
    if got != wanted:
        raise MappingError(f"the {what} cover {got} and should cover {wanted}; change a count")
