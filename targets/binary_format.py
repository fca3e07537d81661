"""How programs lie in bytes: what the writer and the reader of binary programs agree on.

Layout: magic, version, CRC-32 of the rest, then the pools (strings, numbers, affines, views,
matrices, slots, code; each operand is stored once and named by its index), the header, the kernels.
Integers are zigzag varints.  The depth of a buffer that is found as it was left is below zero.
"""

from __future__ import annotations

from ccnn.targets.program import (
    Drain,
    Exec,
    ExecOS,
    Instruction,
    Load,
    LoadH,
    LoadV,
    Map,
    Random,
    Reduce,
    Shift,
    Store,
)

MAGIC = b"CCNNPROG"
VERSION = 1
DEEPEST = 64
LARGEST = 1 << 127
KINDS = ("wait", "signal", "release")
POOLS = ("strings", "numbers", "affines", "slots", "views", "matrices", "codes")
OPCODES: tuple[type[Instruction], ...] = (
    Load, Store, LoadV, LoadH, Shift, Exec, Drain, Map, Reduce, Random, ExecOS,
)  # fmt: skip
SYNC = len(OPCODES)
LOOP = SYNC + 1
MODE = LOOP + 1
"""Before an instruction that names a mode."""
