"""`make bench`: the onnx package's networks at batch 32 on wavecore, then ResNet-50 with values.

A table of what compiling and simulating takes and what the step costs.  Each network runs in a
process of its own, so that memory is its own too.  Names given as arguments choose networks.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from pathlib import Path

NAMES = (
    "resnet50", "densenet121", "inception_v1", "inception_v2", "vgg19", "squeezenet",
    "shufflenet", "bvlc_alexnet", "zfnet512",
)  # fmt: skip
VALUES = "values"
BATCH = 32
COLUMNS = (
    ("compile_s", 10, ".1f"), ("prove_s", 9, ".1f"), ("simulate_s", 11, ".1f"),
    ("peak_mib", 9, ".0f"), ("program_kib", 12, ".0f"), ("dram_gib", 9, ".2f"),
    ("cycles", 14, ",d"), ("bound_x", 8, ".2f"), ("pe_use", 8, ".1%"),
)  # fmt: skip


def light(name: str) -> Path:
    """A network that ships with the onnx package; its weights are drawn."""
    import onnx

    return Path(onnx.__file__).parent / "backend/test/data/light" / f"light_{name}.onnx"


def measure(name: str) -> dict[str, float]:
    """Compile, prove and simulate one network."""
    from ccnn.compiler import CompileOptions, compile_model
    from ccnn.compiler.report import build_report
    from ccnn.targets.simulator import simulate
    from ccnn.targets.verify import verify_program

    began = time.monotonic()
    c = compile_model(light(name), CompileOptions(batch=BATCH))
    compiled = time.monotonic()
    findings = verify_program(c.program, c.machine)
    proved = time.monotonic()
    trace = simulate(c.program, c.machine)
    simulated = time.monotonic()
    if findings:
        raise SystemExit(f"{name} is not safe: {findings[0]}")
    report = build_report(c, trace, trace)
    totals = report["totals"]
    return {
        "compile_s": compiled - began,
        "prove_s": proved - compiled,
        "simulate_s": simulated - proved,
        "peak_mib": peak_mib(),
        "program_kib": totals["program_bytes"] / 1024,
        "dram_gib": (totals["dram_read_bytes"] + totals["dram_write_bytes"]) / 2**30,
        "cycles": totals["cycles"],
        "bound_x": totals["cycles"] / report["bounds"]["cycles"],
        "pe_use": totals["pe_utilisation"],
    }


def peak_mib() -> float:
    """Most memory this process ever held; Linux counts in KiB, macOS in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def execute_resnet50() -> None:
    """ResNet-50 at batch 2, executed with values and compared with the interpreter."""
    from ccnn.compiler import CompileOptions, compile_model, verify_values

    began = time.monotonic()
    c = compile_model(light("resnet50"), CompileOptions(batch=2, dtype="float32"))
    errors = verify_values(c)
    bad = [e for e in errors if not e.error <= e.bound]
    worst = max(errors, key=lambda e: e.error / e.bound)
    sys.stdout.write(
        f"resnet50, batch 2, float32, executed with values: {len(errors) - len(bad)} of "
        f"{len(errors)} tensors agree with the interpreter in float64; worst {worst.name}: "
        f"{worst.error:.1e} of {worst.bound:.1e} allowed; {time.monotonic() - began:.0f} s, "
        f"{peak_mib():.0f} MiB\n"
    )
    if bad:
        raise SystemExit(1)


def main(names: list[str]) -> int:
    """Print the table, one network after the other."""
    if names[:1] == ["--one"]:
        if names[1] == VALUES:
            execute_resnet50()
        else:
            sys.stdout.write(json.dumps(measure(names[1])))
        return 0
    sys.stdout.write(f"{'batch 32, wavecore':20}" + "".join(f"{c:>{w}}" for c, w, _ in COLUMNS))
    sys.stdout.write("\n")
    failed = 0
    for name in names or (*NAMES, VALUES):
        command = [sys.executable, __file__, "--one", name]
        done = subprocess.run(command, capture_output=True, text=True)
        failed += done.returncode != 0
        if done.returncode or name == VALUES:
            sys.stdout.write(done.stdout or f"{name:20} failed: {done.stderr.strip()[-300:]}\n")
        else:
            row = json.loads(done.stdout)
            cells = "".join(f"{format(row[c], spec):>{w}}" for c, w, spec in COLUMNS)
            sys.stdout.write(f"{name:20}{cells}\n")
        sys.stdout.flush()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
