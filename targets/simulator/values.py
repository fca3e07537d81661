"""Run a program with real numbers: items top to bottom, the meaning the program has on paper.

Each kernel becomes a tree of closures once; loops then run them with numpy.  16-bit operands are
multiplied and accumulated in the accumulation type (float32 at least).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from ccnn.targets.machine import Machine
from ccnn.targets.program import (
    Drain,
    Exec,
    ExecOS,
    Instruction,
    Item,
    Kernel,
    Load,
    LoadH,
    LoadV,
    Loop,
    Map,
    Program,
    Random,
    Reduce,
    Shift,
    Store,
    Sync,
)
from ccnn.targets.simulator.access import Context
from ccnn.targets.simulator.affine import Scope
from ccnn.targets.simulator.errors import SimulationError
from ccnn.targets.simulator.lanes import map_lanes, random_lanes, reduce_lanes
from ccnn.targets.simulator.memory import DTYPES, Memory
from ccnn.targets.simulator.moves import Step, drain, execute_wave, load, load_lbuf, shift, store

_MEANINGS: dict[type[Instruction], Callable[..., Step]] = {
    Load: load,
    Store: store,
    LoadV: load_lbuf,
    LoadH: load_lbuf,
    Shift: shift,
    Exec: execute_wave,
    ExecOS: execute_wave,
    Drain: drain,
    Map: map_lanes,
    Reduce: reduce_lanes,
    Random: random_lanes,
}

FED = ("input", "parameter", "state", "constant")
"""Roles of the tensors that must be given before the first step."""


class Execution(Mapping[str, np.ndarray]):
    """A machine's memory with a program in it; maps tensor names to copies of their values.

    DRAM stays as it is between steps, so parameters and state carry over.  Tensors that share an
    address show whatever was written there last.
    """

    def __init__(self, program: Program, machine: Machine, poison: bool = False) -> None:
        self.program = program
        self.memory = Memory(program, machine.gbuf_bytes, poison)
        self.steps = 0
        self._kernels = [_KernelCode(program, k, self.memory) for k in program.kernels]

    def write(self, name: str, value: np.ndarray) -> None:
        """Set a tensor; the value is rounded to its dtype.  SimulationError for a wrong shape."""
        placed = self.memory.placed(name)
        array = np.asarray(value)
        if array.shape != placed.shape:
            raise SimulationError(
                f"tensor {name} has shape {placed.shape}, the value given for it {array.shape}"
            )
        if array.dtype.kind not in "biufV":
            raise SimulationError(f"tensor {name} is {placed.dtype}, not {array.dtype}")
        with np.errstate(all="ignore"):
            self.memory.tensor(name)[...] = array.astype(DTYPES[placed.dtype])

    def read(self, name: str) -> np.ndarray:
        """A copy of a tensor, in its own dtype."""
        return self.memory.tensor(name).copy()

    def step(self) -> None:
        """Run the program once."""
        with np.errstate(all="ignore"):
            for kernel in self._kernels:
                kernel.run(self.steps)
        self.steps += 1

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self.memory.tensors:
            raise KeyError(name)
        return self.read(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.memory.tensors)

    def __len__(self) -> int:
        return len(self.memory.tensors)


def execute(
    program: Program,
    machine: Machine,
    values: Mapping[str, np.ndarray],
    steps: int = 1,
    poison: bool = False,
) -> Execution:
    """Run `steps` training steps on `values` (by tensor name); the result maps names to arrays.

    All inputs, parameters, state and constants must be given.  With `poison` everything else is
    NaN at first.  Raises SimulationError.
    """
    missing = [t.name for t in program.tensors if t.role in FED and t.name not in values]
    if missing:
        raise SimulationError(
            f"{len(missing)} tensors need values, such as {', '.join(missing[:5])}; "
            "give every input, parameter, state and constant"
        )
    run = Execution(program, machine, poison)
    for name, value in values.items():
        run.write(name, value)
    for _ in range(steps):
        run.step()
    return run


class _KernelCode:
    """One kernel as closures."""

    def __init__(self, program: Program, kernel: Kernel, memory: Memory) -> None:
        accum = DTYPES[program.accum]
        nodes = tuple(n.name for n in program.nodes)
        self.storages = memory.storage(kernel)
        self.context = Context(memory, self.storages, accum, kernel.name, nodes)
        self.steps = self._block(kernel.body, {})

    def _block(self, items: Sequence[Item], scope: Scope) -> list[Step]:
        return [self._item(item, scope) for item in items if not isinstance(item, Sync)]

    def _item(self, item: Instruction | Loop, scope: Scope) -> Step:
        if isinstance(item, Instruction):
            return _MEANINGS[type(item)](self.context, item, scope)
        if item.var in scope:
            raise SimulationError(
                f"kernel {self.context.kernel}: loop variable {item.var} is used by an outer loop"
            )
        place, env = len(scope), self.context.env
        if len(env) <= place:
            env.append(0)
        body = self._block(item.body, {**scope, item.var: (place, item.trip)})
        trip = item.trip

        def loop() -> None:
            for n in range(trip):
                env[place] = n
                for step in body:
                    step()

        return loop

    def run(self, step: int) -> None:
        """Run the kernel as part of training step number `step`."""
        self.context.step = step
        for storage in self.storages.values():
            storage.clear()
        for run in self.steps:
            run()
