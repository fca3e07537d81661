"""`make reproduce`: every network with reference results, executed, against PyTorch's numbers.

A table: per model file the worst relative error of each kind of result, in float64.  More
networks in the same form may lie in the folder that CCNN_CORPUS names.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

import reference

from ccnn.compiler import CompileOptions, compile_model, run_steps
from ccnn.passes.autodiff import Optimizer

LIMIT = 1e-9


def folders() -> list[Path]:
    """Folders with inputs and reference results."""
    roots = [reference.DATA]
    if corpus := os.environ.get("CCNN_CORPUS"):
        roots.append(Path(corpus) / "tiny")
    found = {path.parent.name: path.parent for root in roots for path in root.glob("*/ref_f64.npz")}
    return [found[name] for name in sorted(found)]


def worst_errors(model: Path, target: str = "wavecore") -> dict[str, tuple[float, str]]:
    """Execute two steps of a model in float64; kind of result to worst error and tensor."""
    truth = reference.read(model.parent / "ref_f64.npz")
    lr, momentum, decay = (float(h) for h in truth["hyper"])
    inputs = reference.read(model.parent / "inputs.npz")
    options = CompileOptions(
        target=target,
        batch=len(inputs["target"]),
        dtype="float64",
        optimizer=Optimizer("sgd", lr=lr, momentum=momentum, weight_decay=decay),
        input_gradient=True,
    )
    results = run_steps(compile_model(model, options), inputs, 2)
    return reference.worst_by_kind(reference.errors(truth, results))


def main() -> None:
    """Print the table; exit 1 when an error is above the limit."""
    sys.stdout.write(f"{'':34}" + "".join(f"{k:>11}" for k in reference.KINDS) + "    seconds\n")
    bad = 0
    for folder in folders():
        for model in sorted(folder.glob("*.onnx")):
            began = time.monotonic()
            worst = worst_errors(model)
            cells = "".join(
                f"{worst[k][0]:11.1e}" if k in worst else f"{'-':>11}" for k in reference.KINDS
            )
            took = time.monotonic() - began
            sys.stdout.write(f"{folder.name + '/' + model.name:34}{cells}{took:11.1f}\n")
            sys.stdout.flush()
            bad += max(error for error, _ in worst.values()) > LIMIT
    sys.stdout.write(f"{bad} models are off by more than {LIMIT:g}\n")
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
