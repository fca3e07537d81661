"""Results of an executed program against PyTorch's: one error a tensor, and the worst a kind."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

DATA = Path(__file__).parent / "data"
KINDS = ("loss", "output", "loss2", "grad_input", "grad", "w1", "bn1", "w2")
NULL = 1e-11
"""A gradient this much smaller than the largest is zero in theory; what is left is rounding."""


def read(path: Path) -> dict[str, np.ndarray]:
    """All arrays of a .npz file."""
    with np.load(path) as archive:
        return {key: archive[key] for key in archive.files}


def step_arguments(reference: Mapping[str, np.ndarray]) -> list[str]:
    """The options of `ccnn run` that give the reference's optimizer."""
    lr, momentum, decay = (repr(float(h)) for h in reference["hyper"])
    return ["--lr", lr, "--momentum", momentum, "--weight-decay", decay]


def wanted(reference: Mapping[str, np.ndarray]) -> list[str]:
    """The keys of a reference that a run of two steps must produce."""
    return [key for key in reference if key.split("/")[0] in KINDS]


def errors(
    reference: Mapping[str, np.ndarray], results: Mapping[str, np.ndarray]
) -> dict[str, float]:
    """Key to error: largest difference over largest reference value.

    Updated weights are measured by the size of their update, so that a forgotten weight decay
    shows; gradients that are zero in theory by the largest gradient.  A missing result or
    one of another shape counts as infinitely wrong.
    """
    gradients = [v for k, v in reference.items() if k.startswith("grad/")]
    largest = max(float(np.abs(g).max()) for g in gradients)
    return {key: _error(key, reference, results, largest) for key in wanted(reference)}


def _error(
    key: str, reference: Mapping[str, np.ndarray], results: Mapping[str, np.ndarray], largest: float
) -> float:
    truth = np.asarray(reference[key], np.float64)
    if key not in results or np.shape(results[key]) != truth.shape:
        return float("inf")
    value = np.asarray(results[key], np.float64)
    difference = float(np.abs(value - truth).max()) if truth.size else 0.0
    scale = float(np.abs(truth).max()) if truth.size else 1.0
    if key.startswith(("w1/", "w2/")):
        scale = max(_update(key, reference), 1e-3 * scale)
    if key.startswith("grad/") and scale < NULL * largest:
        scale = largest
    return difference / max(scale, 1e-300) if np.isfinite(value).all() else float("inf")


def _update(key: str, reference: Mapping[str, np.ndarray]) -> float:
    """Largest change of a weight in the step that leads to `key`."""
    step, name = key.split("/", 1)
    lr, _, decay = (float(h) for h in reference["hyper"])
    first = np.asarray(reference[f"w1/{name}"], np.float64)
    if step == "w2":
        before, after = first, np.asarray(reference[key], np.float64)
    else:
        # w1 = w0 - lr * (g + decay * w0)
        gradient = np.asarray(reference[f"grad/{name}"], np.float64)
        before, after = (first + lr * gradient) / (1 - lr * decay), first
    return float(np.abs(after - before).max())


def worst_by_kind(found: Mapping[str, float]) -> dict[str, tuple[float, str]]:
    """Kind of result to its largest error and the tensor that has it."""
    worst: dict[str, tuple[float, str]] = {}
    for key, error in found.items():
        kind = key.split("/")[0]
        if kind not in worst or error > worst[kind][0]:
            worst[kind] = (error, key)
    return worst
