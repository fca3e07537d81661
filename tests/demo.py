"""`make demo`: compile, execute and verify a small real network, then compile ResNet-50.

Each command is printed before it runs, so that it can be typed again.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import onnx
import reference

ROOT = Path(__file__).parent.parent
OUT = Path("ccnn-out")
SMALL = Path("tests/data/resnet8_cifar")
RESNET50 = Path(onnx.__file__).parent / "backend/test/data/light/light_resnet50.onnx"
LIMIT = 1e-9


def say(text: str = "") -> None:
    """Print at once, in step with what the commands print."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def command(*arguments: object, alias: str = "") -> None:
    """Show and run one ccnn command; stop the demo when it fails."""
    words = [str(a) for a in arguments]
    shown = shlex.join(["ccnn", *words])
    say(f"\n$ {shown.replace(str(RESNET50), alias) if alias else shown}")
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-m", "ccnn.compiler", *words], cwd=ROOT)
    if done.returncode:
        sys.exit(f"the demo stopped: exit code {done.returncode}")
    say(f"({time.monotonic() - began:.1f} s)")


def compare_with_pytorch(results: Path) -> None:
    """Print the worst error of each kind of result; stop the demo when one is too large."""
    truth = reference.read(ROOT / SMALL / "ref_f64.npz")
    worst = reference.worst_by_kind(reference.errors(truth, reference.read(results)))
    say("\nThe executed program against PyTorch autograd, both in float64, largest relative error:")
    for kind in reference.KINDS:
        if kind in worst:
            error, name = worst[kind]
            say(f"  {kind:<10} {error:8.1e}   {name}")
    if max(error for error, _ in worst.values()) > LIMIT:
        sys.exit(f"the demo stopped: an error is above {LIMIT:g}")


def main() -> None:
    """The demo from top to bottom."""
    os.chdir(ROOT)
    OUT.mkdir(exist_ok=True)
    say("1. A small residual network that ships with ccnn: can it be compiled?")
    command("check", SMALL / "model.onnx")
    say("\n2. Compile one training step for the machine 'wavecore' and say what it costs.")
    command("compile", SMALL / "model.onnx", "-o", OUT / "resnet8")
    say("\n3. Prove that program safe, execute it on random data, compare with the graph.")
    command("verify", SMALL / "model.onnx")
    say("\n4. Execute it on data for which PyTorch's results are known, two steps of SGD.")
    options = reference.step_arguments(reference.read(SMALL / "ref_f64.npz"))
    saved = OUT / "resnet8" / "results.npz"
    command(
        "run", SMALL / "model.onnx", "--inputs", SMALL / "inputs.npz", "--dtype", "float64",
        *options, "--save-results", saved,
    )  # fmt: skip
    compare_with_pytorch(saved)
    say("\n5. The real size: ResNet-50, batch 32, from the onnx package.")
    command("compile", RESNET50, "--batch", 32, "-o", OUT / "resnet50", alias="light_resnet50.onnx")
    say(
        f"""
What to look at now
  {OUT}/resnet50/report.html   the whole report as one page: open it in a browser
  {OUT}/resnet8/program.asm    the program: tensors in DRAM, kernels, loops, tokens
  {OUT}/resnet8/mapping.txt    how each convolution and matrix product is cut into tiles
  {OUT}/resnet50/report.json   the same for programs, with units and formulas
  {OUT}/resnet50/layers.csv    the layers, for a spreadsheet
  .venv/bin/ccnn --help        everything else; the README has a tutorial of five minutes"""
    )


if __name__ == "__main__":
    main()
