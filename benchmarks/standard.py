"""Full-size networks executed with values, against PyTorch's results; a table.

Not part of the tests: the networks lie in the folder that CCNN_CORPUS names (a script there fills
in the weights), and each takes a minute or more.  Loss and output are judged; of the gradients
the norms are compared in float64, since in float32 rounding moves units across a ReLU's kink.

    CCNN_CORPUS=FOLDER .venv/bin/python benchmarks/standard.py [NAME...]
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

import reference

from ccnn.compiler import CompileOptions, compile_model, run_steps
from ccnn.passes.autodiff import Optimizer

DTYPE = "float64"
LIMIT = 1e-9
"""Relative to the largest value of the tensor, or the norm."""


def models(corpus: Path) -> list[Path]:
    """The networks that have reference results."""
    return sorted(path for path in (corpus / "standard").glob("*.onnx") if _results(path).exists())


def _results(model: Path) -> Path:
    return model.with_name(f"{model.stem}.ref.npz")


def materialized(model: Path, corpus: Path, folder: Path) -> tuple[Path, dict[str, np.ndarray]]:
    """The model with its weights, and its inputs."""
    script, full, inputs = (
        corpus / "materialize_weights.py",
        folder / "model.onnx",
        folder / "in.npz",
    )
    command = [sys.executable, str(script), str(model), str(full), "--inputs", str(inputs)]
    subprocess.run(command, check=True)
    return full, reference.read(inputs)


def worst_errors(model: Path, corpus: Path) -> dict[str, float]:
    """Execute one step; kind of result to worst error."""
    truth = reference.read(_results(model))
    lr, momentum, decay = (float(h) for h in truth["hyper"])
    with tempfile.TemporaryDirectory() as folder:
        full, inputs = materialized(model, corpus, Path(folder))
        options = CompileOptions(
            batch=len(inputs["target"]),
            dtype=DTYPE,
            optimizer=Optimizer("sgd", lr=lr, momentum=momentum, weight_decay=decay),
            input_gradient=True,
        )
        found = run_steps(compile_model(full, options), inputs, 1)
    worst = {key: _off(found[key], truth[f"f64/{key}"]) for key in ("loss", "output")}
    digests = {k.removeprefix("f64/digest/"): v for k, v in truth.items() if "f64/digest/grad" in k}
    norms = {key: float(digest[0]) for key, digest in digests.items()}
    largest = max(norms.values())
    worst["grad"] = 0.0
    for key, norm in norms.items():
        scale = norm if norm > reference.NULL * largest else largest  # zero but for rounding
        error = abs(float(np.linalg.norm(found[key])) - norm) / scale
        worst["grad"] = max(worst["grad"], error)
    return worst


def _off(value: np.ndarray, truth: np.ndarray) -> float:
    return float(np.abs(value - truth).max() / np.abs(truth).max())


def main(names: list[str]) -> int:
    """Print the table; 1 when an error is above the limit."""
    if not (folder := os.environ.get("CCNN_CORPUS")):
        sys.stderr.write("CCNN_CORPUS must name the folder that has the folder 'standard'\n")
        return 2
    corpus, bad = Path(folder), 0
    sys.stdout.write(f"| network, {DTYPE} | loss | output | gradient norms | seconds |\n")
    sys.stdout.write("| --- | ---: | ---: | ---: | ---: |\n")
    for model in models(corpus):
        if names and model.stem not in names:
            continue
        began = time.monotonic()
        worst = worst_errors(model, corpus)
        cells = " | ".join(f"{error:.1e}" for error in worst.values())
        sys.stdout.write(f"| {model.stem} | {cells} | {time.monotonic() - began:.0f} |\n")
        sys.stdout.flush()
        bad += max(worst.values()) > LIMIT
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
