"""Executed DRAM traffic and cycles of mini-batch serialization, beside the conventional schedule.

    python benchmarks/mbs.py [MODEL.onnx …]      default: the light models that ship with onnx

Every figure is counted by the simulator from a program that the verifier has proven safe: wavecore,
batch 32, bfloat16.  `x` columns are fractions of the conventional schedule's DRAM bytes
and cycles; MACs tell what recomputed layers cost.
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path

import onnx

from ccnn.compiler.driver import Compilation, CompileOptions, compile_model
from ccnn.targets.simulator import Trace, simulate
from ccnn.targets.verify import verify_program

LIGHT = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
NAMES = ("resnet50", "inception_v1", "inception_v2", "densenet121", "vgg19", "bvlc_alexnet")
CHOICES = (
    ("group", "mbs2", "none"), ("group", "best", "none"), ("group", "best", "cheap"),
    ("group", "best", "layers"), ("exact", "best", "none"), ("exact", "best", "cheap"),
    ("exact", "best", "layers"),
)  # fmt: skip


def measured(model: Path, options: CompileOptions) -> tuple[Compilation, Trace, float]:
    """Compile, prove safe, simulate; and the seconds the first and last took."""
    start = time.perf_counter()
    compiled = compile_model(model, options)
    trace = simulate(compiled.program, compiled.machine)
    seconds = time.perf_counter() - start
    findings = verify_program(compiled.program, compiled.machine)
    if findings:
        raise SystemExit(f"{model.name}: not safe: {findings[0]}")
    return compiled, trace, seconds


def main(arguments: list[str]) -> None:
    """Print one table a model."""
    models = [Path(a) for a in arguments] or [LIGHT / f"light_{n}.onnx" for n in NAMES]
    for model in models:
        options = CompileOptions(batch=32)
        _, usual, _ = measured(model, options)
        print(
            f"\n{model.stem}: conventional {usual.dram_bytes / 2**30:.3f} GiB, "
            f"{usual.cycles / 1e6:.1f} M cycles, {usual.macs / 1e9:.1f} G MACs\n\n"
            "| norm | serialize | recompute | DRAM x | cycles x | MACs x | groups | s |\n"
            "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: |",
            flush=True,
        )
        for norm, serialize, recompute in CHOICES:
            asked = replace(options, norm=norm, serialize=serialize, recompute=recompute)
            compiled, trace, seconds = measured(model, asked)
            print(
                f"| {norm} | {serialize} | {recompute} | {trace.dram_bytes / usual.dram_bytes:.3f} "
                f"| {trace.cycles / usual.cycles:.3f} | {trace.macs / usual.macs:.3f} "
                f"| {len(compiled.lowered.groups)} | {seconds:.1f} |",
                flush=True,
            )


if __name__ == "__main__":
    main(sys.argv[1:])
