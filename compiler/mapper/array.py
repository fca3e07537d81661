"""One GEMM on the array: the values that say how it is cut, and what that costs.

What a cut is says compiler/cut.py.  Cycles of a block in mode d, over all waves of m_i rows,
with a second weight register:

    sum over i of max(ceil(m_i / sub_waves), shift)      shift: rows of the block

and the sum instead of the maximum without one (FlexSA, section "timing"; targets/simulator/cost.py
charges the same for ShiftV and ExecGEMM).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction

from ccnn.compiler.cut import FLOWS, Cut, Flow, MappingError, Triple, Waves
from ccnn.targets.machine import Machine
from ccnn.targets.modes import Mode

Figure = int | Fraction
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
    objective: str = "time"
    """What the best mapping has least of: time, traffic or energy (array_objective.py)."""


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
    bound: Figure
    """No mapping of the space has less of the objective: cycles, bytes or pJ."""
    floor: Figure
    """No mapping at all has: multiplications over PEs, words over operand ports."""
    value: Figure = 0
    """Of the objective."""

    @property
    def cycles(self) -> int:
        """The slower of array and DRAM, which overlap."""
        return max(self.array_cycles + self.fill_cycles + self.reduce_cycles, self.dram_cycles)

    @property
    def gap(self) -> Fraction:
        """How far above the bound: 0 is proven best."""
        return Fraction(self.value - self.bound) / self.bound

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


def with_bound(mapping: ArrayMapping, bound: Figure) -> ArrayMapping:
    """The same with what is proven about the whole space."""
    return replace(mapping, bound=min(bound, mapping.value))
