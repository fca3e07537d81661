"""What the flexible machine gains on whole steps: `ccnn-flex` against `wavecore`, executed.

    python benchmarks/together.py [NETWORK …] [--on MACHINE …] [--save FILE.json]

Networks: dense and pruned ResNet-50 (epoch 90, penalty ratios 0.1, 0.2, 0.3), Inception-v4,
DenseNet-121 and MobileNet-v2, at the batch of FlexSA's tables.  Each is compiled with the
conventional schedule and with the best serialized one (`--serialize best`, exact norms), in
bfloat16.  Figures are the simulator's, from the programs themselves.  PE use of the GEMM part: on
the array's own (the exact mapper, ideal memory, fill and drain charged), and in the program while
the array streams; depthwise convolutions are no GEMMs of the first, and are part of the second.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import onnx
from flexsa import IDEAL_MEMORY, network, totals
from resnet50_gemms import RATIOS, pruned
from zoo import NETWORKS as ZOO
from zoo import resnet

from ccnn.compiler.driver import CompileOptions, compile_model
from ccnn.targets.simulator import simulate

FLEXIBLE, FIXED = "ccnn-flex", "wavecore"
GOALS = {"dense": 0.95, "0.2": 0.90}
"""PE use of the GEMM part under ideal memory that the flexible machine should reach."""


def pruned_model(ratio: str) -> onnx.ModelProto:
    """ResNet-50 with the channels left at epoch 90."""
    return resnet((3, 4, 6, 3), [conv.k for conv in pruned(ratio, 90).convs])


NETWORKS: dict[str, tuple[Callable[[], onnx.ModelProto], int]] = {
    "dense": (ZOO["resnet50"], 32),
    **{ratio: (partial(pruned_model, ratio), 32) for ratio in RATIOS},
    "inception-v4": (ZOO["inception_v4"], 32),
    "densenet-121": (ZOO["densenet121"], 32),
    "mobilenet-v2": (ZOO["mobilenet_v2"], 128),
}


@dataclass(frozen=True)
class Step:
    """An executed step."""

    network: str
    machine: str
    schedule: str
    cycles: int
    dram_bytes: int
    gbuf_bytes: int
    energy_pj: float
    macs: int
    streaming: float
    """MACs over PEs and cycles in which the array takes in rows."""


def execute(title: str, machine: str, schedule: str) -> Step:
    """Compile and simulate."""
    build, batch = NETWORKS[title]
    best = "best" if schedule == "best" else "none"
    c = compile_model(build(), CompileOptions(target=machine, batch=batch, serialize=best))
    trace = simulate(c.program, c.machine)
    busy = next(e for e in trace.engines if e.name == "array").busy_cycles
    return Step(
        title, machine, schedule, trace.cycles, trace.dram_bytes, trace.gbuf_bytes,
        trace.energy_pj, trace.macs, trace.macs / (busy * c.machine.peak_macs_per_cycle),
    )  # fmt: skip


def show(title: str, machines: Sequence[str]) -> list[Step]:
    """The rows of one network, as they are measured; the last machine over the first."""
    words = "ResNet-50, " if title in ("dense", *RATIOS) else ""
    use = [
        f"{totals(network(title), m, IDEAL_MEMORY, 'exact').utilisation:.3f} {m}" for m in machines
    ]
    goal = f"; goal {GOALS[title]:.2f}" if title in GOALS else ""
    heads = ("cycles", 14), ("DRAM MB", 10), ("GBUF MB", 10), ("energy mJ", 11), ("streaming", 11)
    sys.stdout.write(
        f"\n{words}{title}, batch {NETWORKS[title][1]}; PE use of the GEMM part, ideal memory: "
        f"{', '.join(use)}{goal}\n"
        f"  {'':<24}{''.join(f'{head:>{width}}' for head, width in heads)}\n"
    )
    steps = []
    for schedule in ("layers", "best"):
        for machine in machines:
            s = execute(title, machine, schedule)
            steps.append(s)
            sys.stdout.write(
                f"  {machine + ', ' + schedule:<24}{s.cycles:>14,}{s.dram_bytes / 1e6:>10,.0f}"
                f"{s.gbuf_bytes / 1e6:>10,.0f}{s.energy_pj / 1e9:>11,.0f}{s.streaming:>11.3f}\n"
            )
            sys.stdout.flush()
    fixed, flexible = steps[-len(machines)], steps[-1]
    ratios = [
        getattr(fixed, key) / getattr(flexible, key)
        for key in ("cycles", "dram_bytes", "gbuf_bytes", "energy_pj")
    ]
    sys.stdout.write(
        f"  {fixed.machine} over {flexible.machine}, best: cycles {ratios[0]:.3f}x, "
        f"DRAM {ratios[1]:.3f}x, GBUF {ratios[2]:.3f}x, energy {ratios[3]:.3f}x\n"
    )
    return steps


def main(arguments: list[str]) -> int:
    """Print the tables of the networks asked for."""
    parser = argparse.ArgumentParser(description="ccnn-flex against wavecore, whole steps")
    parser.add_argument("names", nargs="*", metavar="NETWORK", help=", ".join(NETWORKS))
    parser.add_argument("--on", nargs="+", default=[FIXED, FLEXIBLE], metavar="MACHINE")
    parser.add_argument("--save", type=Path, metavar="FILE.json")
    asked = parser.parse_args(arguments)
    if unknown := [n for n in asked.names if n not in NETWORKS]:
        parser.error(f"no network '{unknown[0]}'; there are {', '.join(NETWORKS)}")
    steps = []
    for title in asked.names or NETWORKS:
        steps += show(title, asked.on)
        if asked.save:
            asked.save.write_text(json.dumps([asdict(s) for s in steps], indent=1) + "\n", "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
