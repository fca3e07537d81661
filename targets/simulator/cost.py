"""What each instruction costs: the one place where cycles, bytes and actions are defined.

`occupancy` is how long the engine takes before it can issue its next instruction (for LD and ST:
how long the DRAM channel is busy), `latency` how much later the results are there.

    LD, ST       ceil(bytes inside the tensor / bytes a cycle) on the DRAM channel, then its
                 latency; nothing at all when the whole block is padding
    LdLBUF_V     k cycles: a row of n words each          LdLBUF_H    m cycles: a row of k words
    ShiftV       k cycles: one row of weights each
    ExecGEMM     m cycles; the last result leaves k + n - 2 cycles later (skew to fill and drain)
    ExecOS       k cycles; the last result is complete m + n - 2 cycles later
    StLBUF       m cycles, and m more when it adds to what the destination holds
    VMAP, VRED   startup + ceil(elements / lanes) * max(1, slots of the code); VRED has its
                 results ceil(log2 lanes) cycles later (the tree that combines the lanes)
    VRAND        as VMAP with a code of 4 slots

In a mode of p sub-waves LdLBUF_H, ExecGEMM and StLBUF take p rows a cycle, ceil(m / p) cycles: each
sub-wave has local buffers and accumulators of its own.  The stationary block is written to, and
shifted from, each of them; it is read from the GBUF once where the mode broadcasts it.  Sums that
waves of different modes add to are joined below the array at no cost.

In a mode spread over several arrays each does its part of M, N and K at the same time.  What parts
share is read from the GBUF once for each; feeds and drain take as long as a group's ports need for
that, if longer (`Machine.port_words`).  Sums of parts of K drain one part after another, added on
the way.  They cross between arrays, and of what is fed and drained the share of other groups'
buffers crosses between groups: `link_byte`.

In a mode of dataflow pair an ExecGEMM and the ExecOS behind it take turns in the PEs: of T turns a
row each has T / 2, so the results of the first are there m cycles later, with those of the second,
and the rows that both take cross the array once.

Operands of the vector unit are read once where a stride of 0 repeats them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from ccnn.targets.machine import Machine
from ccnn.targets.modes import Mode
from ccnn.targets.program import (
    DTYPE_BYTES,
    Buffer,
    Dim,
    Drain,
    Env,
    Exec,
    ExecOS,
    Instruction,
    Load,
    LoadH,
    LoadV,
    Map,
    Placed,
    Random,
    Reduce,
    Shift,
    Store,
    View,
)
from ccnn.targets.simulator.errors import SimulationError
from ccnn.targets.simulator.moves import inside
from ccnn.targets.vector import slots

RANDOM_SLOTS = 4


@dataclass(frozen=True, slots=True)
class Cost:
    """Cycles of one instruction and how often it acts; bytes unless the name says otherwise."""

    occupancy: int
    latency: int
    macs: int = 0
    mac_bits: int = 0
    vector_ops: int = 0
    dram_read: int = 0
    dram_write: int = 0
    gbuf_read: int = 0
    gbuf_write: int = 0
    lbuf: int = 0
    acc: int = 0
    link: int = 0
    tensor: str = ""

    def actions(self) -> dict[str, int]:
        """How often each row of the machine's energy table is charged."""
        counts = {
            "vector_op": self.vector_ops,
            "dram_byte": self.dram_read + self.dram_write,
            "gbuf_byte": self.gbuf_read + self.gbuf_write,
            "lbuf_byte": self.lbuf,
            "acc_byte": self.acc,
            "link_byte": self.link,
            "instruction": 1,
        }
        if self.macs:
            counts[f"mac_{self.mac_bits}bit"] = self.macs
        return {action: n for action, n in counts.items() if n}


@dataclass(frozen=True)
class Facts:
    """What the cost of an instruction depends on besides itself."""

    machine: Machine
    tensors: Mapping[str, Placed]
    buffers: Mapping[str, Buffer]

    def width(self, buffer: str) -> int:
        """Bytes of one element of a buffer; raises SimulationError when there is none such."""
        if buffer not in self.buffers:
            raise SimulationError(f"the kernel has no buffer '{buffer}'")
        return DTYPE_BYTES[self.buffers[buffer].dtype]


def _mode(f: Facts, i: Instruction) -> Mode:
    if i.mode not in f.machine.mode_named:
        raise SimulationError(f"the machine {f.machine.name} has no mode '{i.mode}'")
    return f.machine.mode_named[i.mode]


def _volume(dims: Iterable[Dim], env: Env) -> int:
    """Elements of a block, repeated ones too."""
    return math.prod(e.at(env) for e, _ in dims)


def _distinct(dims: Iterable[Dim], env: Env) -> int:
    """Elements of a block, those that a stride of 0 repeats counted once."""
    return math.prod(e.at(env) for e, stride in dims if stride)


def _moved(f: Facts, i: Load | Store, view: View, env: Env) -> tuple[int, int, int]:
    """(cycles on the channel, latency, DRAM bytes) of a LD or ST."""
    if i.tensor not in f.tensors:
        raise SimulationError(f"the program has no tensor '{i.tensor}'")
    tensor, count = f.tensors[i.tensor], 1
    for (e, _), start, step, size in zip(view.dims, i.start, i.step, tensor.shape, strict=True):
        low, high = inside(start.at(env), step, e.at(env), size)
        count *= high - low
    moved = count * DTYPE_BYTES[tensor.dtype]
    cycles = math.ceil(moved / f.machine.bytes_per_cycle)
    return cycles, f.machine.dram_latency_cycles if moved else 0, moved


def load_cost(f: Facts, i: Load, env: Env) -> Cost:
    """LD: only what lies inside the tensor crosses the channel; the fill is written too."""
    cycles, latency, moved = _moved(f, i, i.dst, env)
    written = _volume(i.dst.dims, env) * f.width(i.dst.buffer)
    return Cost(cycles, latency, dram_read=moved, gbuf_write=written, tensor=i.tensor)


def store_cost(f: Facts, i: Store, env: Env) -> Cost:
    """ST: what lies outside the tensor is not even read."""
    cycles, latency, moved = _moved(f, i, i.src, env)
    read = moved // DTYPE_BYTES[f.tensors[i.tensor].dtype] * f.width(i.src.buffer)
    return Cost(cycles, latency, dram_write=moved, gbuf_read=read, tensor=i.tensor)


def load_lbuf_cost(f: Facts, i: LoadV | LoadH, env: Env) -> Cost:
    """LdLBUF_V, LdLBUF_H: one row of the window a cycle; of moving rows one a sub-wave."""
    rows, mode = i.src.row_count.at(env), _mode(f, i)
    _, across, deep = mode.split
    words = rows * i.src.col_count.at(env)
    taken, copies = (mode.loads, mode.copies) if isinstance(i, LoadV) else (across, across)
    cycles = -(-rows // (deep if isinstance(i, LoadV) else mode.sub_waves))
    read = words * taken * f.width(i.src.buffer)
    return Cost(
        max(cycles, f.machine.port_cycles(words * taken)),
        0,
        gbuf_read=read,
        lbuf=words * copies * f.width(i.dst.buffer),
        link=_between_groups(f.machine, read),
    )


def _between_groups(machine: Machine, moved: int) -> int:
    """Bytes of those moved that another group's buffer holds."""
    return moved * (machine.groups - 1) // machine.groups


def shift_cost(f: Facts, i: Shift, env: Env) -> Cost:
    """ShiftV: one row of weights a cycle."""
    k, mode = i.k.at(env), _mode(f, i)
    words = k * i.n.at(env) * mode.copies
    return Cost(-(-k // mode.split[2]), 0, lbuf=words * f.width(i.src.buffer))


def exec_cost(f: Facts, i: Exec, env: Env) -> Cost:
    """ExecGEMM: one row of the moving operand a cycle and sub-wave."""
    m, k, n = i.m.at(env), i.k.at(env), i.n.at(env)
    width = f.width(i.moving.buffer)
    mode = _mode(f, i)
    _, across, deep = mode.split
    touched = m * n * deep * f.width(i.acc.buffer)
    waiting = m * (mode.turns - mode.pace) if mode.dataflow == "pair" else 0
    return Cost(
        -(-m // mode.sub_waves) * mode.pace,
        -(-k // deep) + -(-n // across) - 2 + waiting,
        macs=m * k * n,
        mac_bits=max(16, 8 * width),
        lbuf=m * k * across * width,
        acc=touched * (2 if i.accumulate.at(env) > 0 else 1),
    )


def exec_os_cost(f: Facts, i: ExecOS, env: Env) -> Cost:
    """ExecOS: a row of both operands a cycle; sums stay in the PEs until they are drained."""
    m, k, n = i.m.at(env), i.k.at(env), i.n.at(env)
    width = f.width(i.moving.buffer)
    mode = _mode(f, i)
    down, across, deep = mode.split
    again = i.accumulate.at(env) > 0
    passing = 0 if mode.dataflow == "pair" else m
    return Cost(
        -(-k // mode.sub_waves) * mode.pace,
        -(-m // down) + -(-n // across) - 2,
        macs=m * k * n,
        mac_bits=max(16, 8 * width),
        lbuf=(passing * across + n * down) * k * width,
        acc=0 if again else m * n * deep * f.width(i.acc.buffer),
    )


def drain_cost(f: Facts, i: Drain, env: Env) -> Cost:
    """StLBUF: one row a cycle and sub-wave, read back first when it accumulates."""
    m, n = i.dst.row_count.at(env), i.dst.col_count.at(env)
    written = m * n * f.width(i.dst.buffer)
    again = i.accumulate.at(env) > 0
    bias = 0 if i.bias is None else n * f.width(i.bias.buffer)
    mode = _mode(f, i)
    deep, sums = mode.split[2], m * n * f.width(i.acc.buffer)
    rows = max(-(-m // mode.copies) * deep, f.machine.port_cycles(m * n))
    read = bias + (written if again else 0)
    return Cost(
        rows + (-(-m // mode.copies) if again else 0),
        0,
        gbuf_read=read,
        gbuf_write=written,
        acc=sums * deep,
        link=sums * (deep - 1) + _between_groups(f.machine, read + written),
    )


def _vector(f: Facts, elements: int, per_element: int) -> int:
    """Cycles of a vector instruction."""
    m = f.machine
    return m.vector_startup_cycles + -(-elements // m.lanes) * per_element


def _operands(f: Facts, i: Map | Reduce, env: Env) -> int:
    return sum(_distinct(v.dims, env) * f.width(v.buffer) for v in i.srcs)


def map_cost(f: Facts, i: Map, env: Env) -> Cost:
    """VMAP: every lane takes one element."""
    elements, per_element = _volume(i.dst.dims, env), max(1, slots(i.code))
    return Cost(
        _vector(f, elements, per_element),
        0,
        vector_ops=elements * per_element,
        gbuf_read=_operands(f, i, env),
        gbuf_write=elements * f.width(i.dst.buffer),
    )


def reduce_cost(f: Facts, i: Reduce, env: Env) -> Cost:
    """VRED: as VMAP over the swept space; the lanes are combined by a tree behind them."""
    elements = _volume((i.srcs[0] if i.srcs else i.dst).dims, env)
    per_element = max(1, slots(i.code))
    kept = [d for axis, d in enumerate(i.dst.dims) if axis not in i.axes]
    written = _volume(kept, env) * f.width(i.dst.buffer)
    return Cost(
        _vector(f, elements, per_element),
        (f.machine.lanes - 1).bit_length(),
        vector_ops=elements * per_element,
        gbuf_read=_operands(f, i, env) + (written if i.accumulate.at(env) > 0 else 0),
        gbuf_write=written,
    )


def random_cost(f: Facts, i: Random, env: Env) -> Cost:
    """VRAND: a hash of every element's position."""
    elements = _volume(i.dst.dims, env)
    return Cost(
        _vector(f, elements, RANDOM_SLOTS),
        0,
        vector_ops=elements * RANDOM_SLOTS,
        gbuf_write=elements * f.width(i.dst.buffer),
    )


COSTS: dict[type[Instruction], Callable[..., Cost]] = {
    Load: load_cost,
    Store: store_cost,
    LoadV: load_lbuf_cost,
    LoadH: load_lbuf_cost,
    Shift: shift_cost,
    Exec: exec_cost,
    ExecOS: exec_os_cost,
    Drain: drain_cost,
    Map: map_cost,
    Reduce: reduce_cost,
    Random: random_cost,
}
"""The cost of each instruction, given the facts and the loop variables."""


def instruction_cost(f: Facts, i: Instruction, env: Env) -> Cost:
    """What `i` costs in the iteration `env`; raises SimulationError for unknown operands."""
    return COSTS[type(i)](f, i, env)
