"""Cycles of single GEMMs and of ResNet-50's forward convolutions beside SCALE-Sim's, in one run.

.venv/bin/pip install '.[bench]' && .venv/bin/python benchmarks/scale_sim.py
"""

from __future__ import annotations

import csv
import sys
import tempfile
from collections.abc import Sequence
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from architectures import resnet50
from gemms import Conv

SIDE = 128
GEMMS = (
    (128, 128, 128), (256, 256, 256), (3136, 64, 576), (49, 2048, 512), (1000, 64, 2048),
    (64, 64, 64), (100, 30, 200), (512, 512, 512), (2048, 1024, 768), (1, 1000, 2048),
)  # fmt: skip
"""M, N, K."""
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


def run_scale_sim(rows: Sequence[str], dataflow: str, gemm: bool) -> list[int]:
    """Compute cycles of each row of a topology file."""
    from scalesim.scale_sim import scalesim

    with tempfile.TemporaryDirectory() as name, redirect_stdout(StringIO()):
        folder = Path(name)
        (folder / "run.cfg").write_text(CONFIG.format(side=SIDE, dataflow=dataflow))
        (folder / "topology.csv").write_text("\n".join(["name,", *rows]) + "\n")
        ones = [f"l{i}," + "1," * 20 for i in range(len(rows))]
        (folder / "layout.csv").write_text("\n".join(["name,", *ones]) + "\n")
        files = (str(folder / f) for f in ("run.cfg", "topology.csv", "layout.csv"))
        scalesim(True, False, *files, gemm).run_scale(name)
        with (folder / "run" / "COMPUTE_REPORT.csv").open() as stream:
            table = list(csv.reader(stream))
    at = [cell.strip() for cell in table[0]].index("Total Cycles")
    return [int(float(row[at])) for row in table[1:]]


def conv_row(i: int, v: Conv) -> str:
    """A convolution in SCALE-Sim's words; it knows no padding, so the image has it already."""
    stride = v.h // v.p
    side = (v.p - 1) * stride + v.r
    return f"l{i},{side},{side},{v.r},{v.s},{v.c},{v.k},{stride},"


if __name__ == "__main__":
    import time

    for df in ("ws", "os"):
        t = time.time()
        print(
            run_scale_sim([f"g{i},{m},{n},{k}," for i, (m, n, k) in enumerate(GEMMS)], df, True),
            time.time() - t,
        )
        convs = list(dict.fromkeys(resnet50().convs))
        t = time.time()
        print(
            run_scale_sim([conv_row(i, v) for i, v in enumerate(convs)], df, False), time.time() - t
        )
