"""One GEMM on the array: the values that say how it is cut, and what that costs.

result[M, N] = a[M, K] @ b[K, N].  A *flow* says which of the three dimensions streams through the
array (its length), which lies across its columns (width) and which down its rows (depth).  Each
of the machine's arrays gets an equal *part*.  A part's width is cut into *strips*, each strip's
depth into *blocks* with a mode of their own, and its length into *waves*.

Cycles of a block in mode d, over all waves of m_i rows, with a second weight register:

    sum over i of max(ceil(m_i / sub_waves), shift)      shift: rows of the block

and the sum instead of the maximum without one (FlexSA, section "timing"; targets/simulator/cost.py
charges the same for ShiftV and ExecGEMM).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction

from ccnn.compiler.mapping import MappingError
from ccnn.targets.machine import Machine
from ccnn.targets.modes import Mode

Triple = tuple[int, int, int]
"""Something for each of M, N and K."""
Waves = tuple[tuple[int, int], ...]
"""(moving rows, how many waves of that length), in order."""

LARGEST = 2**31 - 1
"""Largest dimension of a GEMM; keeps every sum of cycles within the solver's integers."""


@dataclass(frozen=True)
class Product:
    """A GEMM by its dimensions; raises MappingError when one is not from 1 to LARGEST."""

    m: int
    n: int
    k: int

    def __post_init__(self) -> None:
        for name, size in (("M", self.m), ("N", self.n), ("K", self.k)):
            if not 1 <= size <= LARGEST:
                raise MappingError(
                    f"the GEMM's {name} is {size}; give a whole number from 1 to {LARGEST}"
                )
        if self.m * self.n * self.k > 2**52:
            raise MappingError(
                f"the GEMM {self.m} x {self.n} x {self.k} has more than 2^52 multiplications; "
                "map it in pieces"
            )

    @property
    def macs(self) -> int:
        """Multiply-accumulates."""
        return self.m * self.n * self.k

    @property
    def sizes(self) -> Triple:
        """(M, N, K)."""
        return self.m, self.n, self.k


@dataclass(frozen=True)
class Rules:
    """What is counted; the defaults are the machine's, the rest are idealisations of papers."""

    fill_drain: bool = True
    """Charge the first shift-in and the array's skew once."""
    ideal_memory: bool = False
    """DRAM and the reduction of partial results take no time."""
    whole_shift: bool = False
    """A shift-in takes all rows of the mode, also those that stay empty."""
    uncut: bool = False
    """Waves as long as the GEMM, whatever the local buffers hold."""
    balanced: bool = False
    """The arrays share the cycles of the whole GEMM evenly, without being given parts of it."""
    word_bytes: int = 2
    sum_bytes: int = 4


@dataclass(frozen=True)
class Flow:
    """Which dimension streams, lies across and lies down: indices into (M, N, K)."""

    name: str
    dataflow: str
    length: int
    width: int
    depth: int

    def of(self, sizes: Triple) -> Triple:
        """(length, width, depth) of a GEMM."""
        return sizes[self.length], sizes[self.width], sizes[self.depth]


FLOWS = (
    Flow("b stays", "ws", 0, 1, 2),
    Flow("a stays", "ws", 1, 0, 2),
    Flow("result stays", "os", 2, 1, 0),
    Flow("result stays, transposed", "os", 2, 0, 1),
)
"""The paper's own first: activations stream past weights."""


@dataclass(frozen=True)
class Run:
    """`count` blocks of a strip's depth, alike."""

    mode: str
    depth: int
    count: int
    cycles: int
    """Of one block, over all waves."""


@dataclass(frozen=True)
class Strip:
    """`count` strips of a part's width, alike."""

    width: int
    count: int
    runs: tuple[Run, ...]

    @property
    def cycles(self) -> int:
        """Of one strip."""
        return sum(run.count * run.cycles for run in self.runs)

    @property
    def blocks(self) -> int:
        """Blocks of one strip."""
        return sum(run.count for run in self.runs)


@dataclass(frozen=True)
class Cut:
    """How a part of the GEMM is cut, the same on every array."""

    flow: Flow
    groups: Triple
    """Parts that M, N and K are split into over the groups."""
    units: Triple
    """The same over the units of each group."""
    part: Triple
    """M, N and K of the largest part."""
    waves: Waves
    strips: tuple[Strip, ...]

    @property
    def cycles(self) -> int:
        """Cycles the array is busy with the part."""
        return sum(strip.count * strip.cycles for strip in self.strips)

    @property
    def strip_count(self) -> int:
        """Strips of the part."""
        return sum(strip.count for strip in self.strips)

    @property
    def split(self) -> Triple:
        """Parts of M, N and K over all arrays."""
        g, u = self.groups, self.units
        return g[0] * u[0], g[1] * u[1], g[2] * u[2]


@dataclass(frozen=True)
class Words:
    """Words between the global and the local buffers, all arrays together."""

    a: int
    b: int
    result: int
    """Results drained; partial ones too where K is split."""

    @property
    def total(self) -> int:
        """All of them."""
        return self.a + self.b + self.result


@dataclass(frozen=True)
class ArrayMapping:
    """A GEMM's cut with its cost, and what is proven about the best there is."""

    product: Product
    machine: str
    mapper: str
    pes: int
    cut: Cut
    array_cycles: int
    fill_cycles: int
    reduce_cycles: int
    dram_cycles: int
    words: Words
    buffer_bytes: int
    dram_bytes: int
    bound: int
    """No mapping of the space takes fewer cycles."""
    floor: int
    """No mapping at all does: multiplications over PEs, words over operand ports."""

    @property
    def cycles(self) -> int:
        """The slower of array and DRAM, which overlap."""
        return max(self.array_cycles + self.fill_cycles + self.reduce_cycles, self.dram_cycles)

    @property
    def gap(self) -> Fraction:
        """How far above the bound: 0 is proven best."""
        return Fraction(self.cycles - self.bound, self.bound)

    @property
    def utilisation(self) -> float:
        """Multiplications over PEs times cycles."""
        return self.product.macs / (self.pes * self.cycles)

    @property
    def mode_cycles(self) -> dict[str, int]:
        """Cycles of a part by mode."""
        found: dict[str, int] = {}
        for strip in self.cut.strips:
            for run in strip.runs:
                cycles = strip.count * run.count * run.cycles
                found[run.mode] = found.get(run.mode, 0) + cycles
        return found


def block_cycles(machine: Machine, rules: Rules, mode: Mode, waves: Waves, depth: int) -> int:
    """Cycles of a block of `depth` rows over all waves; the module's formula."""
    shift = mode.rows if rules.whole_shift else depth
    total = 0
    for rows, count in waves:
        stream = -(-rows // mode.sub_waves) * mode.turns
        total += count * (max(stream, shift) if machine.weight_buffers > 1 else stream + shift)
    return total


def wave_rows(machine: Machine) -> int:
    """Moving rows that fit one slot of the local buffers, results and operand."""
    return min(machine.acc_rows, machine.lbuf_h_rows)


def flows(machine: Machine) -> tuple[Flow, ...]:
    """The flows that some mode of the machine can take."""
    known = {mode.dataflow for mode in machine.array_modes}
    return tuple(flow for flow in FLOWS if flow.dataflow in known)


def modes_of(machine: Machine, flow: Flow) -> tuple[Mode, ...]:
    """The modes of a flow."""
    return tuple(m for m in machine.array_modes if m.dataflow == flow.dataflow)


def triples(count: int) -> Iterator[Triple]:
    """Ways to split M, N and K into `count` parts; those of M first, then of K."""
    divisors = [d for d in range(1, count + 1) if count % d == 0]
    for m in reversed(divisors):
        for k in (d for d in reversed(divisors) if count % (m * d) == 0):
            yield m, count // (m * k), k


def part_of(sizes: Triple, *splits: Triple) -> Triple:
    """The largest part of a GEMM split once or several times over."""
    m, n, k = sizes
    for split in splits:
        m, n, k = -(-m // split[0]), -(-n // split[1]), -(-k // split[2])
    return m, n, k


def with_bound(mapping: ArrayMapping, bound: int) -> ArrayMapping:
    """The same with what is proven about the whole space."""
    return replace(mapping, bound=min(bound, mapping.cycles))
