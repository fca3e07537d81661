"""Arrays given to `ccnn run`: read from a .npz file and held against what the model wants."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ccnn.compiler.failure import ExitCode, Failure
from ccnn.compiler.files import read_bytes
from ccnn.passes.graph import Graph, Tensor


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a .npz file by name. Raises Failure for anything else."""
    content = io.BytesIO(read_bytes(path))
    if not zipfile.is_zipfile(content):
        raise _refuse(path, "is not a .npz archive", "write it with numpy.savez")
    try:
        with np.load(content, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (ValueError, EOFError, OSError, zipfile.BadZipFile, NotImplementedError) as error:
        raise _refuse(
            path,
            f"cannot be read as arrays: {error}",
            "write it with numpy.savez, of plain number arrays",
        ) from error


def batch_of(arrays: Mapping[str, np.ndarray]) -> int | None:
    """How many samples the arrays hold, going by `target`; None when that does not tell."""
    target = arrays.get("target")
    return int(target.shape[0]) if target is not None and target.ndim else None


def check_inputs(step: Graph, arrays: Mapping[str, np.ndarray], path: Path) -> None:
    """Raise Failure unless each input of the step is there, in its shape, made of numbers."""
    wanted = step.of_role("input")
    complaints = []
    for tensor in wanted:
        if tensor.name not in arrays:
            complaints.append(f"{tensor.name} is missing; it has the shape {tensor.shape}")
        else:
            complaints += _complaints(step, tensor, arrays[tensor.name])
    if complaints:
        there = ", ".join(f"{k}{list(v.shape)}" for k, v in sorted(arrays.items())) or "nothing"
        raise Failure(
            ExitCode.INPUT,
            f"{path} does not fit the model:\n"
            + "\n".join(f"  {c}" for c in complaints)
            + f"\nThe file holds {there}; give each array under the name of the model's input.",
        )


def _complaints(step: Graph, tensor: Tensor, array: np.ndarray) -> list[str]:
    if array.shape != tensor.shape:
        return [
            f"{tensor.name} has the shape {array.shape}, the model takes {tensor.shape}; "
            "--batch changes the model's first dimension"
        ]
    if tensor.dtype == "index":
        if array.dtype.kind not in "iu":
            return [f"{tensor.name} is {array.dtype}; class indices are whole numbers"]
        return _class_complaints(step, tensor, array)
    if array.dtype.kind not in "fiu":
        return [f"{tensor.name} is {array.dtype}; give floating-point numbers"]
    if not np.isfinite(array).all():
        return [f"{tensor.name} has values that are infinite or not a number"]
    return []


def _class_complaints(step: Graph, tensor: Tensor, array: np.ndarray) -> list[str]:
    """What is wrong with class indices, going by the loss that reads them."""
    for node in step.consumers[tensor.name]:
        if node.op == "softmax_cross_entropy":
            classes = step[node.inputs[0]].shape[1]
            wrong = (array < 0) | (array >= classes)
            if (ignored := node.attr("ignore_index")) is not None:
                wrong &= array != ignored
            if wrong.any():
                first = array[wrong].flat[0]
                return [f"{tensor.name} holds {first}; the model has {classes} classes, from 0"]
    return []


def _refuse(path: Path, what: str, advice: str) -> Failure:
    return Failure(ExitCode.INPUT, f"{path} {what}; {advice}")
