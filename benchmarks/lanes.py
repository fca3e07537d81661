"""Convolutions in groups on the array or the lanes, against the array alone: whole steps, executed.

    python benchmarks/lanes.py [NAME...] [--batch 32] [--schedule none,mbs2] [--norm exact]

Networks are those of zoo.py with convolutions in groups, and the onnx package's ShuffleNet.  For
the array alone a step is mapped for a machine of a single lane, which never wins, and that mapping
is executed on the machine itself.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
from networks import light
from zoo import NETWORKS

from ccnn.compiler import CompileOptions, compile_model
from ccnn.compiler.driver import Compilation
from ccnn.targets.machine import load_machine
from ccnn.targets.simulator import Trace, simulate

MODELS: dict[str, Callable[[], onnx.ModelProto | Path]] = {
    "mobilenet_v2": NETWORKS["mobilenet_v2"],
    "shufflenet": lambda: light("shufflenet"),
    "efficientnet_b0": NETWORKS["efficientnet_b0"],
    "resnext50": NETWORKS["resnext50"],
}
HEAD = (
    "| network | schedule | unit | cycles | DRAM GB | energy J | array busy | vector busy |\n"
    "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: |"
)


def on_array_alone(model: onnx.ModelProto | Path, options: CompileOptions) -> Compilation:
    """The step with every product on the array."""
    machine = load_machine(str(options.target))
    slow = compile_model(model, replace(options, target=replace(machine, lanes=1)))
    if any(tiling.on_lanes for tiling in slow.mapping.tilings.values()):
        raise SystemExit("a single lane won: the figures would not be the array's")
    return compile_model(model, replace(options, pinned=slow.mapping))


def row(name: str, schedule: str, unit: str, trace: Trace) -> str:
    """A row of the table."""
    busy = {engine.name: engine.busy_cycles / trace.cycles for engine in trace.engines}
    cells = [
        name, schedule, unit, f"{trace.cycles:,}", f"{trace.dram_bytes / 1e9:.3f}",
        f"{trace.energy_pj / 1e12:.3f}", f"{busy['array']:.1%}", f"{busy['vector']:.1%}",
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def rows(name: str, batch: int, schedule: Any, norm: Any) -> list[str]:
    """A network on one schedule, on the array alone and on whichever unit takes less."""
    model = MODELS[name]()
    options = CompileOptions(batch=batch, serialize=schedule, norm=norm)
    found = {"array": on_array_alone(model, options), "either": compile_model(model, options)}
    return [row(name, schedule, u, simulate(c.program, c.machine)) for u, c in found.items()]


def main(arguments: list[str]) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description="convolutions in groups on either unit")
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(MODELS))
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--schedule", default="none,mbs2", help="several with commas between")
    parser.add_argument("--norm", default="exact", choices=("exact", "group", "ghost"))
    asked = parser.parse_args(arguments)
    if unknown := [n for n in asked.names if n not in MODELS]:
        parser.error(f"no network '{unknown[0]}'; there are {', '.join(MODELS)}")
    print(HEAD, flush=True)
    for name in asked.names or MODELS:
        for schedule in asked.schedule.split(","):
            print("\n".join(rows(name, asked.batch, schedule, asked.norm)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
