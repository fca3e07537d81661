"""The modes of an array that can be reshaped: what one wave through it looks like.

FlexSA joins or separates four sub-cores; InterGrad lets a PE take turns with two GEMMs.  Both are
data here: the shape of the logical arrays a mode forms, how many of them work at the same time,
and what one load serves.  The moving rows of a wave are dealt out evenly to its sub-waves.

Several arrays work in step: one instruction drives them all, each on its part.  How a wave is
split over them is a mode, too (`spread`), named for instance `VSW_2x2x1`: two parts of M, two of N.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ccnn.targets.machine_yaml import MachineError

DATAFLOWS = {
    "ws": "weights stay: a k x n block is held, rows stream past it",
    "os": "results stay: an m x n block is held, the reduction streams past it",
    "pair": "both gradients: weights and their gradient are held, dY streams past them once",
}


@dataclass(frozen=True)
class Mode:
    """`sub_waves` logical arrays of rows x cols PEs that take one moving row each a cycle.

    `turns` is the cycles a moving row takes: 2 where PEs take turns with two GEMMs.
    """

    name: str
    rows: int
    cols: int
    sub_waves: int = 1
    dataflow: str = "ws"
    stationary: str = "broadcast"
    """'broadcast': one loaded block serves all sub-waves; 'copies': it is loaded for each."""
    turns: int = 1
    split: tuple[int, int, int] = (1, 1, 1)
    """Parts of M, N and K, each on an array of its own; the sizes above are of all together."""

    @property
    def pace(self) -> int:
        """Cycles a row takes in one of the mode's GEMMs: a pair's two share its turns."""
        return -(-self.turns // 2) if self.dataflow == "pair" else self.turns

    @property
    def loads(self) -> int:
        """How often a stationary block is read from the buffer for one wave."""
        return self.sub_waves if self.stationary == "copies" else self.split[0]

    @property
    def copies(self) -> int:
        """Logical arrays that hold the stationary block, and drain a row at the same time."""
        m, _, k = self.split
        return self.sub_waves // k * m if self.dataflow == "os" else self.sub_waves

    @property
    def pes(self) -> int:
        """PEs that work in this mode."""
        return self.rows * self.cols * self.sub_waves


def spread_name(mode: str, split: tuple[int, int, int]) -> str:
    """What a mode is called on several arrays."""
    return f"{mode}_{'x'.join(map(str, split))}"


def spread(mode: Mode, split: tuple[int, int, int]) -> Mode:
    """The mode of one array as that of several, which share out M, N and K of each wave."""
    m, n, k = split
    down, streams = (m, k) if mode.dataflow == "os" else (k, m)
    return replace(
        mode,
        name=spread_name(mode.name, split),
        rows=mode.rows * down,
        cols=mode.cols * n,
        sub_waves=mode.sub_waves * streams,
        split=split,
    )


def splits(count: int) -> Iterator[tuple[int, int, int]]:
    """Ways to split M, N and K into `count` parts; those of M first, then of K."""
    divisors = [d for d in range(count, 0, -1) if count % d == 0]
    for m in divisors:
        for k in (d for d in divisors if count % (m * d) == 0):
            yield m, count // (m * k), k


def read_modes(section: Mapping[str, Mapping[str, Any]]) -> tuple[Mode, ...]:
    """Modes in the order of the machine file, whose schema has been checked."""
    return tuple(Mode(name=name, **facts) for name, facts in section.items())


def check_modes(machine: str, rows: int, cols: int, modes: tuple[Mode, ...]) -> None:
    """Raise MachineError for a mode that the array cannot take."""
    for mode in modes:
        where = f"machine {machine}: mode {mode.name}"
        if mode.rows > rows or mode.cols > cols:
            raise MachineError(
                f"{where} is {mode.rows} x {mode.cols}, more than the array's {rows} x {cols}; "
                "make the mode smaller or the array larger"
            )
        if mode.pes > rows * cols:
            raise MachineError(
                f"{where} uses {mode.pes} PEs at a time and the array has {rows * cols}; "
                "lower its sub_waves"
            )
        if mode.dataflow == "pair" and (mode.sub_waves > 1 or mode.turns < 2):
            raise MachineError(
                f"{where} takes turns with two GEMMs; give it 1 sub-wave and 2 turns or more"
            )
    if modes and not any(m.dataflow == "ws" for m in modes):
        raise MachineError(f"machine {machine}: no mode has dataflow ws; add one")


def best_mode(modes: Iterable[Mode], rows: int, cols: int) -> Mode:
    """The weight-stationary mode with most sub-waves that holds a block of rows x cols.

    FlexSA's rule: the whole array for tall and wide blocks, sub-waves for narrow or shallow ones.
    """
    fitting = [m for m in modes if m.dataflow == "ws" and m.rows >= rows and m.cols >= cols]
    if not fitting:
        raise MachineError(f"no mode holds a block of {rows} x {cols}; cut it smaller")
    return max(fitting, key=lambda mode: (mode.sub_waves, -mode.rows))


def describe_modes(modes: tuple[Mode, ...]) -> list[str]:
    """A line of text for each mode."""
    lines = []
    for m in modes:
        many = "1 sub-wave" if m.sub_waves == 1 else f"{m.sub_waves} sub-waves"
        block = "" if m.sub_waves == 1 else f", stationary block {_SERVES[m.stationary]}"
        turns = "" if m.turns == 1 else f", {m.turns} cycles a row"
        lines.append(f"    {m.name:<5} {m.rows} x {m.cols}, {m.dataflow}, {many}{block}{turns}")
    return lines


_SERVES = {"broadcast": "broadcast", "copies": "loaded for each"}
