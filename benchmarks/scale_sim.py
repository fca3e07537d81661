"""Cycles of single GEMMs and of ResNet-50's forward convolutions beside SCALE-Sim's, in one run.

    pip install -e '.[bench]' && python benchmarks/scale_sim.py [--quick]

SCALE-Sim (Samajdar et al., ISPASS 2020; PyPI `scalesim`) is run on a 128 x 128 array, weight- and
output-stationary, without limits of memory, on one image.  Ours are programs executed with DRAM as
fast as can be: weights stay on wavecore-base (one weight register) and wavecore (two), results on
intergrad-128.

Both stream every row of the moving operand, or every step of the reduction, through every fold,
one a cycle: `stream` is the same number, checked here.  All else is definition:

    SCALE-Sim  + 128 a fold         loads a whole side of weights (WS), even for a small fold
               + 254 a fold         waits for the skew of every fold, in and out
               - 1                  gives the number of the last cycle, counted from 0
    ours       + edges              our tiles, made for buffers, cut some blocks of results smaller,
                                    and each streams the whole reduction (OS)
               + shift              rows of weights that the fold has, for every wave of 256 rows,
                                    since accumulators hold so many; hidden behind the wave before
                                    where there is a second register and the wave is long enough
               + drain              waits for one of two accumulators to be emptied
               + feed_v, feed_h     waits for operands, at first or where waves are short
               + ends               after the last wave: its skew and its drain, once
"""

from __future__ import annotations

import csv
import sys
import tempfile
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from functools import cache
from io import StringIO
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from architectures import resnet50
from gemms import Conv

from ccnn.compiler.codegen import generate, make_context
from ccnn.compiler.mapper import map_graph
from ccnn.passes.graph import Builder, Graph
from ccnn.targets.formulas import os_cycles, ws_cycles
from ccnn.targets.machine import Machine, load_machine
from ccnn.targets.simulator import simulate

SIDE = 128
SKEW = 2 * SIDE - 2
Gemm = tuple[int, int, int]
GEMMS: tuple[Gemm, ...] = (
    (128, 128, 128), (256, 256, 256), (3136, 64, 576), (49, 2048, 512), (1000, 64, 2048),
    (64, 64, 64), (100, 30, 200),
)  # fmt: skip
"""M, N, K."""
CONVS = tuple(dict.fromkeys(resnet50().convs))
"""The distinct ones of the 53."""
CONFIG = """
[general]
run_name = run
[architecture_presets]
ArrayHeight = {side}
ArrayWidth = {side}
IfmapSramSzkB = 1024
FilterSramSzkB = 1024
OfmapSramSzkB = 1024
IfmapOffset = 0
FilterOffset = 100000000
OfmapOffset = 200000000
Dataflow = {dataflow}
Bandwidth = 100
ReadRequestBuffer = 32
WriteRequestBuffer = 32
[layout]
IfmapCustomLayout = False
IfmapSRAMBankBandwidth = 10
IfmapSRAMBankNum = 10
IfmapSRAMBankPort = 2
FilterCustomLayout = False
FilterSRAMBankBandwidth = 10
FilterSRAMBankNum = 10
FilterSRAMBankPort = 2
[sparsity]
SparsitySupport = false
[run_presets]
InterfaceBandwidth = CALC
UseRamulatorTrace = False
"""


def run_scale_sim(work: Sequence[Gemm] | Sequence[Conv], dataflow: str) -> list[int]:
    """Cycles that SCALE-Sim reports for each GEMM or convolution."""
    from scalesim.scale_sim import scalesim

    gemm = isinstance(work[0], tuple)
    rows = [f"l{i}," + ",".join(map(str, _row(item))) + "," for i, item in enumerate(work)]
    with tempfile.TemporaryDirectory() as name, redirect_stdout(StringIO()):
        folder = Path(name)
        (folder / "run.cfg").write_text(CONFIG.format(side=SIDE, dataflow=dataflow))
        (folder / "topology.csv").write_text("\n".join(["name,", *rows]) + "\n")
        layout = [f"l{i}," + "1," * 20 for i in range(len(rows))]  # not used, but wanted
        (folder / "layout.csv").write_text("\n".join(["name,", *layout]) + "\n")
        files = (str(folder / file) for file in ("run.cfg", "topology.csv", "layout.csv"))
        scalesim(True, False, *files, gemm).run_scale(name)
        with (folder / "run" / "COMPUTE_REPORT.csv").open() as stream:
            table = list(csv.reader(stream))
    at = [cell.strip() for cell in table[0]].index("Total Cycles")
    return [int(float(row[at])) for row in table[1:]]


def _row(item: Gemm | Conv) -> tuple[int, ...]:
    """As SCALE-Sim's topology has it; it knows no padding, so the image has it already."""
    if isinstance(item, tuple):
        return item
    stride = item.h // item.p
    side = (item.p - 1) * stride + item.r
    return side, side, item.r, item.s, item.c, item.k, stride


def lowered(item: Gemm | Conv) -> Gemm:
    """M, N, K."""
    return item if isinstance(item, tuple) else (item.p**2, item.k, item.c * item.r * item.s)


def folds(m: int, n: int, k: int, dataflow: str) -> tuple[int, int]:
    """(folds, cycles of streaming) of either dataflow."""
    if dataflow == "ws":
        count = -(-n // SIDE) * -(-k // SIDE)
        return count, count * m
    count = -(-m // SIDE) * -(-n // SIDE)
    return count, count * k


@cache
def fast(name: str) -> Machine:
    """A machine whose DRAM moves any block in one cycle."""
    return replace(load_machine(name), dram_bandwidth_gib_s=1e12, dram_latency_cycles=0)


def graph_of(item: Gemm | Conv) -> Graph:
    """One node: a matmul or a convolution of one image."""
    b = Builder("one")
    if isinstance(item, tuple):
        m, n, k = item
        operands = [b.input("a", (m, k)), b.input("b", (k, n))]
        return b.build([b.emit("matmul", operands, trans_a=False, trans_b=False)])
    v, stride = item, item.h // item.p
    operands = [b.input("x", (1, v.c, v.h, v.h)), b.input("w", (v.k, v.c, v.r, v.s))]
    out = b.emit(
        "conv", operands, strides=(stride, stride), pads=(v.r // 2,) * 4, dilations=(1, 1), group=1
    )
    return b.build([out])


@dataclass(frozen=True)
class Ours:
    """Cycles of an executed program, and what they were."""

    cycles: int
    busy: int
    """Cycles in which a row, or a step of the reduction, entered the array."""
    stalls: dict[str, int]

    @property
    def ends(self) -> int:
        """Cycles after the array's last wave was issued."""
        return self.cycles - self.busy - sum(self.stalls.values())

    def words(self, stream: int) -> str:
        """What was added to the stream."""
        added = {"edges": self.busy - stream, **self.stalls, "ends": self.ends}
        return ", ".join(f"{cause} {cycles}" for cause, cycles in added.items() if cycles)


def execute(item: Gemm | Conv, name: str, flow: str = "b stays") -> Ours:
    """Timing of the program that ccnn makes of it, tiles and blocks as by FlexSA's rule."""
    context = make_context(graph_of(item), fast(name), "bfloat16")
    mapping = map_graph(context, mapper="heuristic")
    if flow != "b stays":
        tilings = {node: replace(t, flow=flow) for node, t in mapping.tilings.items()}
        mapping = map_graph(context, pinned=replace(mapping, tilings=tilings, cuts={}))
    trace = simulate(generate(context, mapping), context.machine)
    (array,) = (engine for engine in trace.engines if engine.name == "array")
    return Ours(trace.cycles, array.busy_cycles, dict(array.stalls))


OURS = {
    "ws": {"wavecore-base": "b stays", "wavecore": "b stays"},
    "os": {"intergrad-128": "result stays"},
}
"""Machine to flow, by dataflow."""


def show(work: Sequence[Gemm] | Sequence[Conv]) -> int:
    """The table of both dataflows; how many figures are not explained."""
    wrong = 0
    for dataflow, formula in (("ws", ws_cycles), ("os", os_cycles)):
        sys.stdout.write(
            f"\n{dataflow}, {'M N K':>17}{'SCALE-Sim':>11}{'stream':>9}{'folds':>7}"
            + "".join(f"{name:>15}" for name in OURS[dataflow])
            + "   what ours adds to the stream\n"
        )
        for item, measured in zip(work, run_scale_sim(work, dataflow), strict=True):
            m, n, k = lowered(item)
            count, stream = folds(m, n, k, dataflow)
            loads = SIDE if dataflow == "ws" else 0
            ours = [execute(item, name, flow) for name, flow in OURS[dataflow].items()]
            wrong += measured != formula(m, n, k, SIDE, SIDE)
            wrong += measured != stream + count * (loads + SKEW) - 1
            wrong += any(p.busy < stream or (loads and p.busy > stream) for p in ours)
            sys.stdout.write(
                f"{f'{m} {n} {k}':>21}{measured:>11}{stream:>9}{count:>7}"
                + "".join(f"{p.cycles:>15}" for p in ours)
                + f"   {'; '.join(p.words(stream) for p in ours)}\n"
            )
            sys.stdout.flush()
    return wrong


def main(arguments: Sequence[str]) -> int:
    """Print both tables; 1 when a figure of SCALE-Sim is not explained."""
    try:
        from importlib.metadata import version

        sys.stdout.write(f"scalesim {version('scalesim')}\n")
    except ImportError:
        sys.stderr.write("scalesim is not installed; pip install -e '.[bench]'\n")
        return 2
    wrong = show(GEMMS)
    if "--quick" not in arguments:
        wrong += show(CONVS)
    sys.stdout.write(f"\n{wrong} figures are not explained\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
