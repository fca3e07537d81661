"""The trace: what a simulated step took, in total and by layer, engine, tensor and kernel.

Units: cycles of the machine's clock, bytes, picojoules; `seconds` is cycles over the clock.
"""

from __future__ import annotations

from dataclasses import dataclass

NOT_MODELLED = (
    "loop control, instruction fetch and tokens take no time of their own",
    "engines never wait for each other at the banks of GBUF, LBUF or the accumulators",
    "padding is written to GBUF by LD in no time",
    "DRAM has a fixed latency and one bandwidth for any address pattern: no refresh, row misses, "
    "burst rounding or read-write turnaround",
    "the vector unit reads and writes GBUF as fast as its lanes compute",
    "energy is a fixed amount for each action: no dependence on data, temperature or voltage",
)
"""What the numbers leave out, as sentences for a report."""
OF_ARRAYS = ("words that cross between arrays or groups of arrays cost energy, but no time",)
"""What they leave out besides where a machine has several arrays."""


@dataclass(frozen=True)
class Counts:
    """What instructions did: how many there were, operations, bytes by place, energy in pJ.

    energy_pj includes the static energy of the cycles where cycles are known.
    """

    instructions: int = 0
    macs: int = 0
    vector_ops: int = 0
    dram_read_bytes: int = 0
    dram_write_bytes: int = 0
    gbuf_read_bytes: int = 0
    gbuf_write_bytes: int = 0
    lbuf_bytes: int = 0
    acc_bytes: int = 0
    energy_pj: float = 0.0


@dataclass(frozen=True)
class LayerTrace:
    """One graph node: by how much it moved the end of the step, and what it did.

    `cycles` add up to the step's over all layers; `busy` is (engine, cycles) of work.
    """

    node: int
    name: str
    op: str
    origin: str
    phase: str
    cycles: int
    busy: tuple[tuple[str, int], ...]
    counts: Counts


@dataclass(frozen=True)
class EngineTrace:
    """One engine: cycles at work, and cycles stalled by (cause, cycles).

    A cause is the engine that was waited for, or 'dram' for the channel being busy with older
    requests.  What is left of the step's cycles the engine had nothing to do.
    """

    name: str
    busy_cycles: int
    stalls: tuple[tuple[str, int], ...]
    counts: Counts


@dataclass(frozen=True)
class TensorTrace:
    """DRAM traffic of one tensor."""

    name: str
    read_bytes: int
    write_bytes: int


@dataclass(frozen=True)
class KernelTrace:
    """When a kernel started (after the barrier) and when its last result was written."""

    name: str
    start: int
    end: int


@dataclass(frozen=True)
class Event:
    """One instruction on a timeline: from issue to the last result."""

    engine: str
    opcode: str
    node: int
    start: int
    end: int


@dataclass(frozen=True)
class Trace:
    """A whole step on a machine."""

    program: str
    machine: str
    cycles: int
    seconds: float
    rows: int
    cols: int
    counts: Counts
    energy: tuple[tuple[str, int, float], ...]
    """(action, how often, pJ in all), static energy included."""
    opcodes: tuple[tuple[str, int], ...]
    """Instructions executed by opcode."""
    modes: tuple[tuple[str, int], ...]
    """Cycles of the array at work by mode; '' is the whole array where there are none."""
    layers: tuple[LayerTrace, ...]
    engines: tuple[EngineTrace, ...]
    tensors: tuple[TensorTrace, ...]
    kernels: tuple[KernelTrace, ...]
    events: tuple[Event, ...] = ()
    not_modelled: tuple[str, ...] = NOT_MODELLED
    arrays: int = 1
    """Arrays of rows x cols that work in step."""

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the array."""
        return self.counts.macs

    @property
    def vector_ops(self) -> int:
        """Lane slots used by the vector unit."""
        return self.counts.vector_ops

    @property
    def instructions(self) -> int:
        """Instructions executed."""
        return self.counts.instructions

    @property
    def dram_read_bytes(self) -> int:
        """Bytes read from DRAM."""
        return self.counts.dram_read_bytes

    @property
    def dram_write_bytes(self) -> int:
        """Bytes written to DRAM."""
        return self.counts.dram_write_bytes

    @property
    def dram_bytes(self) -> int:
        """Bytes moved to and from DRAM."""
        return self.counts.dram_read_bytes + self.counts.dram_write_bytes

    @property
    def gbuf_bytes(self) -> int:
        """Bytes read from and written to the global buffer."""
        return self.counts.gbuf_read_bytes + self.counts.gbuf_write_bytes

    @property
    def lbuf_bytes(self) -> int:
        """Bytes read from and written to the local buffers."""
        return self.counts.lbuf_bytes

    @property
    def energy_pj(self) -> float:
        """Energy of the step."""
        return self.counts.energy_pj

    @property
    def pe_utilisation(self) -> float:
        """macs / (cycles * PEs of all arrays); 0 for a step that takes no time."""
        capacity = self.cycles * self.arrays * self.rows * self.cols
        return self.macs / capacity if capacity else 0.0
