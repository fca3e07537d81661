"""How long a product's waves take with everything they wait for, by executing them alone.

The closed formulas of array_cost.py know the waits of a steady state.  What shift-ins, feeds of
short pieces and drains make of each other is counted here by the simulator itself, on a kernel of
nothing but the waves, its operands in a buffer that is large enough.
"""

from __future__ import annotations

from functools import lru_cache
from math import prod

from ccnn.compiler.codegen.emit import KernelWriter, Region
from ccnn.compiler.codegen.scope import dense
from ccnn.compiler.codegen.waves import Block, Wanted, declare_array, write_waves
from ccnn.compiler.cut import Cut, Triple
from ccnn.targets.machine import Machine
from ccnn.targets.program import DTYPE_BYTES, Extent, NodeRef, Program
from ccnn.targets.simulator import simulate

_DTYPE, _ACCUM = "bf16", "f32"
"""Rows take their cycles whatever a word is."""


def waves_program(
    sizes: Triple, cut: Cut, machine: Machine, pieces: int = 1, times: int = 1
) -> Program:
    """A kernel that multiplies operands in the buffer, so many times over."""
    m, n, k = sizes
    shapes = {"a": (m, k), "b": (k, n), "y": (m, n)}
    room = sum(prod(shape) * DTYPE_BYTES[_DTYPE] + 64 for shape in shapes.values())
    kw = KernelWriter("waves", 0, room)
    declare_array(kw, machine, _DTYPE, _ACCUM, pieces)
    blocks, address = {}, 0
    for name, shape in shapes.items():
        kw.regions[name] = region = Region(name, _DTYPE, prod(shape), address)
        rows, cols = (((Extent(n), step),) for n, step in zip(shape, dense(shape), strict=True))
        blocks[name] = Block(region, rows, cols)
        address += -(-region.bytes // 64) * 64
    wanted = Wanted(blocks["a"], blocks["b"], blocks["y"], sizes, pieces=pieces)
    with kw.loop(times):
        write_waves(kw, machine, wanted, cut.flow.name, cut)
    nodes = (NodeRef("waves", "matmul", "", "forward"),)
    return Program("waves", machine.name, _DTYPE, _ACCUM, 0, (), nodes, (kw.finish(),))


@lru_cache(maxsize=4096)
def executed_cycles(sizes: Triple, cut: Cut, machine: Machine, pieces: int = 1) -> tuple[int, int]:
    """Cycles from the first feed to the last drain, and of each further time the product comes."""
    one, two, three = (
        simulate(waves_program(sizes, cut, machine, pieces, times), machine).cycles
        for times in (1, 2, 3)
    )
    return one, three - two
