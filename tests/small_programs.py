"""A small machine and what tests of the simulator build their programs from."""

from __future__ import annotations

from ccnn.targets.machine import EnergyRow, Machine
from ccnn.targets.program import (
    ZERO,
    Buffer,
    Extent,
    Kernel,
    Matrix,
    NodeRef,
    Placed,
    Program,
    Sync,
    Token,
)

ACTIONS = (
    "mac_16bit", "mac_32bit", "vector_op", "lbuf_byte", "acc_byte", "gbuf_byte", "dram_byte",
    "instruction", "static_cycle",
)  # fmt: skip
MACHINE = Machine(
    name="test",
    description="a small machine",
    clock_ghz=1.073741824,  # one byte a cycle for each GiB/s
    rows=4,
    cols=4,
    weight_buffers=2,
    lbuf_v_slots=2,
    lbuf_h_rows=8,
    lbuf_h_slots=2,
    acc_rows=8,
    acc_slots=2,
    gbuf_bytes=1 << 16,
    lanes=4,
    vector_startup_cycles=2,
    dram_bandwidth_gib_s=3.0,
    dram_latency_cycles=7,
    dram_bytes=1 << 20,
    barrier_cycles=5,
    energy=tuple(EnergyRow(a, 1.0 + n, "test") for n, a in enumerate(ACTIONS)),
)
BUFFERS = (
    Buffer("a", "gbuf", "f32", 4096, 2),
    Buffer("b", "gbuf", "bf16", 4096, 1, 32768),
    Buffer("v", "lbuf_v", "bf16", 16, 2),
    Buffer("h", "lbuf_h", "bf16", 32, 2),
    Buffer("pe", "pe", "bf16", 16, 2),
    Buffer("acc", "acc", "f32", 32, 2),
)
NODES = tuple(NodeRef(f"n{i}", "conv", f"o{i}", "forward") for i in range(4))
TENSORS = (Placed("x", (64, 64), "f32", "input", 0), Placed("y", (64, 64), "bf16", "value", 16384))


def program(*kernels, tokens=(), tensors=TENSORS, buffers=BUFFERS) -> Program:
    """Kernels given by their bodies."""
    made = tuple(Kernel(f"k{n}", buffers, tuple(tokens), tuple(b)) for n, b in enumerate(kernels))
    return Program("p", "test", "bf16", "f32", 1 << 15, tensors, NODES, made)


def wait(engine: str, token: str) -> Sync:
    """`engine` waits for a token."""
    return Sync(engine, "wait", token)


def signal(engine: str, token: str) -> Sync:
    """`engine` gives a token once what it issued is written."""
    return Sync(engine, "signal", token)


def release(engine: str, token: str) -> Sync:
    """`engine` gives a token once what it issued is read."""
    return Sync(engine, "release", token)


def pipe(name: str, depth: int) -> tuple[Token, Token]:
    """The two tokens of a buffer with `depth` slots."""
    return Token(f"{name}.free", depth), Token(f"{name}.full")


def window(buffer: str, m: Extent, n: Extent, rows: int = 64, cols: int = 64) -> Matrix:
    """The top left corner of a dense matrix of `rows` x `cols`."""
    return Matrix(buffer, ((Extent(rows), cols),), ((Extent(cols), 1),), ZERO, m, ZERO, n)
