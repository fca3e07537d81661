"""The tiling of least DRAM traffic over all integer tile sizes, by constraint programming.

One CP-SAT model a loop order: a level picks one of its useful tile sizes; sizes of buffers and
traffic are products of what the levels picked (tables.py), an operand's tiles are fetched again
by the loops that the placement rule of codegen/nest.py says, and whatever is fetched more than
once takes `depth` slots.  The objective is bytes first, then the number of tiles, outer levels
before inner ones, so that equal inputs give equal answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import floor, log
from typing import Any

from ccnn.compiler.mapper.tables import Tables
from ccnn.targets.machine import Machine
from ccnn.targets.program import DTYPE_BYTES

DETERMINISTIC_LIMIT = 0.25
"""Effort for one loop order, in the solver's deterministic seconds."""

_LOG_SCALE = 1000


@dataclass(frozen=True)
class Answer:
    """What is known: bytes of the best tiling found (none: no order), and a proven bound."""

    order: tuple[str, ...]
    tiles: tuple[tuple[str, int], ...]
    dram: int
    bound: int


def least_traffic(
    tables: Tables, machine: Machine, depth: int, limit: int,
    hint: tuple[tuple[str, ...], dict[str, int]] | None = None,
    effort: float = DETERMINISTIC_LIMIT,
) -> Answer:  # fmt: skip
    """The tiling that moves fewest bytes, at most `limit`; tables as of `useful_sizes`.

    `hint` is a known tiling (order, tile sizes).  The answer's bound holds for every order.
    """
    orders = list(tables.gemm.orders)
    if hint:
        orders.sort(key=lambda o: o != hint[0])
    best = Answer((), (), limit, limit)
    bound = limit
    for order in orders:
        # a later order has to be better, not equal
        most = best.dram - (1 if best.order else 0)
        if most < tables.floor:
            break
        model = _Model(tables, machine, order, depth, most)
        tiles = hint[1] if hint and hint[0] == order else None
        found, dram, proven = model.solve(tiles, effort)
        bound = min(bound, proven)
        if found:
            best = Answer(order, found, dram, bound)
    bound = min(bound, best.dram)
    return Answer(best.order, best.tiles, best.dram, max(bound, tables.floor))


class _Model:
    """The CP-SAT model of one loop order."""

    def __init__(
        self, tables: Tables, machine: Machine, order: tuple[str, ...], depth: int, most: int
    ) -> None:
        from ortools.sat.python import cp_model

        self.cp = cp_model
        self.model = cp_model.CpModel()
        self.tables, self.machine, self.order, self.depth = tables, machine, order, depth
        self.most = most
        self.picks = {
            n: [self.model.new_bool_var(f"{n}{s}") for s in tables.levels[n].sizes.tolist()]
            for n in order
        }
        for literals in self.picks.values():
            self.model.add_exactly_one(literals)
        self.trips = {n: self.column(n, tables.levels[n].trips.tolist()) for n in order}
        self.several = {n: self.at_least(n, 2) for n in order}
        self.groups()
        self.capacity()
        self.bytes = self.traffic()
        self.model.add(self.bytes <= most)

    def column(self, name: str, values: Sequence[int], default: int | None = None) -> Any:
        """The entry of a level's table column at its pick."""
        low, high = min(values), max(values)
        if low == high:
            return self.model.new_constant(low)
        made = self.model.new_int_var(low, high, f"{name}v")
        self.model.add(made == sum(v * x for v, x in zip(values, self.picks[name], strict=True)))
        return made

    def at_least(self, name: str, count: int) -> Any:
        """True when a level has `count` iterations or more."""
        trips = self.tables.levels[name].trips.tolist()
        literal = self.model.new_bool_var(f"{name}>1")
        self.model.add(
            sum(x for t, x in zip(trips, self.picks[name], strict=True) if t >= count) == literal
        )
        return literal

    def product(self, factors: Sequence[Any], most: int) -> Any:
        """A variable that equals the product of variables, which is at most `most`."""
        bounds = [tuple(f.proto.domain) for f in factors]
        factors = [f for f, b in zip(factors, bounds, strict=True) if b != (1, 1)]
        if not factors:
            return self.model.new_constant(1)
        made = factors[0]
        for factor in factors[1:]:
            a, b = tuple(made.proto.domain), tuple(factor.proto.domain)
            high = min(most, a[1] * b[1])
            if a[0] * b[0] > high:
                self.model.add(self.model.new_constant(0) == 1)
                return self.model.new_constant(most)
            both = self.model.new_int_var(a[0] * b[0], high, "x")
            self.model.add_multiplication_equality(both, [made, factor])
            made = both
        return made

    def groups(self) -> None:
        """A tile holds several groups only when it holds them whole."""
        gemm = self.tables.gemm
        if not gemm.grouped:
            return
        sizes = self.tables.levels["g"].sizes.tolist()
        for size, literal in zip(sizes, self.picks["g"], strict=True):
            if size > 1:
                for name in gemm.grouped:
                    self.model.add_implication(literal, self.several[name].negated())

    def again(self, depends: frozenset[str]) -> Any:
        """True when an operand is moved more than once."""
        literal = self.model.new_bool_var("again")
        self.model.add_max_equality(literal, [self.several[n] for n in self.order if n in depends])
        return literal

    def volume(self, name: str, most: int) -> Any:
        """Elements of an operand's tile, without its constant."""
        operand = self.tables.operands[name]
        factors, logs = [], []
        for level in self.order:
            if level in operand.depends:
                values = self.tables.levels[level].volume[name].tolist()
                factors.append(self.column(level, values))
                # the sum of logarithms says the same in a way the linear relaxation understands
                logs += [
                    floor(_LOG_SCALE * log(v)) * x
                    for v, x in zip(values, self.picks[level], strict=True)
                ]
        if most < 1:
            self.model.add(self.model.new_constant(0) == 1)
            return self.model.new_constant(1)
        self.model.add(sum(logs) <= floor(_LOG_SCALE * log(most)) + 1)
        return self.product(factors, most)

    def capacity(self) -> None:
        """All buffers fit, each aligned to 64 bytes."""
        room = self.machine.gbuf_bytes
        used = []
        for name, operand in self.tables.operands.items():
            scale = int(operand.volume_scale) * operand.width
            volume = self.volume(name, room // scale)
            used.append(self.buffer(scale * volume, self.depth, self.again(operand.depends)))
            gemm = self.tables.gemm
            for width in gemm.beside if name == "result" else ():
                each = int(operand.volume_scale) * width
                used.append(self.buffer(each * volume, self.depth, self.again(operand.depends)))
            if name == "result" and gemm.may_convert:
                each = int(operand.volume_scale) * DTYPE_BYTES[gemm.accum]
                split = self.again(gemm.reducing)
                used.append(self.buffer(each * volume, 0, split, 1))
        self.model.add(64 * sum(used) <= room)

    def buffer(self, size: Any, once: int, several: Any, otherwise: int = 0) -> Any:
        """Blocks of 64 bytes of a buffer: see `capacity`."""
        blocks = self.model.new_int_var(0, self.machine.gbuf_bytes // 64, "blocks")
        if otherwise:
            self.model.add(64 * blocks >= size).only_enforce_if(several)
        else:
            self.model.add(64 * blocks >= size)
            self.model.add(64 * blocks >= once * size).only_enforce_if(several)
        return blocks

    def traffic(self) -> Any:
        """Bytes moved, as a linear expression over products."""
        total = 0
        for name, operand in self.tables.operands.items():
            factors, moves = [], None
            for level in reversed(self.order):
                table = self.tables.levels[level]
                if level in operand.depends:
                    factors.append(self.column(level, table.cover[name].tolist()))
                    if table.trips.max() > 1:
                        moves = [*(moves or []), self.several[level]]
                elif moves and table.trips.max() > 1:
                    factors.append(self.repeats(level, moves))
            scale = operand.cover_scale * operand.width
            room = floor(self.most / scale) if scale else 0
            if not scale:
                continue
            total = total + int(scale) * self.product(factors, room)
        made = self.model.new_int_var(0, self.most, "bytes")
        self.model.add(made == total)
        self.model.add(made >= min(self.tables.floor, self.most))
        return made

    def repeats(self, level: str, moves: Sequence[Any]) -> Any:
        """A level's iterations where a loop inside it moves the operand, else 1."""
        trips = self.tables.levels[level].trips
        inside = self.model.new_bool_var("inside")
        self.model.add_max_equality(inside, moves)
        made = self.model.new_int_var(1, int(trips.max()), f"{level}r")
        self.model.add(made == self.trips[level]).only_enforce_if(inside)
        self.model.add(made == 1).only_enforce_if(inside.negated())
        return made

    def solve(
        self, hint: dict[str, int] | None, effort: float
    ) -> tuple[tuple[tuple[str, int], ...], int, int]:
        """(tiles, bytes, proven bound); no tiles when none was found."""
        weights = range(len(self.order), 0, -1)
        tie = sum(w * self.trips[n] for w, n in zip(weights, self.order, strict=True))
        most_tie = sum(
            w * int(self.tables.levels[n].trips.max())
            for w, n in zip(weights, self.order, strict=True)
        )
        self.model.minimize((most_tie + 1) * self.bytes + tie)
        if hint:
            for name, size in hint.items():
                table = self.tables.levels[name]
                trips = -(-table.total // size)
                row = next((i for i, t in enumerate(table.trips.tolist()) if t <= trips), 0)
                for i, literal in enumerate(self.picks[name]):
                    self.model.add_hint(literal, i == row)
        solver = self.cp.CpSolver()
        solver.parameters.num_workers = 1
        solver.parameters.random_seed = 1
        solver.parameters.max_deterministic_time = effort
        status = solver.solve(self.model)
        if status == self.cp.INFEASIBLE:
            return (), 0, self.most + 1
        bound = int(-(-solver.best_objective_bound // (most_tie + 1)))
        if status not in (self.cp.OPTIMAL, self.cp.FEASIBLE):
            return (), 0, bound
        tiles = []
        for name in self.order:
            sizes = self.tables.levels[name].sizes.tolist()
            chosen = next(
                s for s, x in zip(sizes, self.picks[name], strict=True) if solver.boolean_value(x)
            )
            tiles.append((name, int(chosen)))
        return (
            tuple(tiles),
            int(solver.value(self.bytes)),
            min(bound, int(solver.value(self.bytes))),
        )
