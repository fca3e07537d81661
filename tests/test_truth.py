"""The strongest check: executed programs against PyTorch autograd, every result of two steps.

The models in tests/data always run; those of a larger corpus run where it is found (CCNN_CORPUS).
float64 must agree to 1e-9; float32 may be off by four times what PyTorch's own float32 run is.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from reference import DATA, errors, read, worst_by_kind

from ccnn.compiler.driver import Compilation, CompileOptions, compile_model
from ccnn.compiler.execution import run_steps
from ccnn.passes.autodiff import Optimizer
from ccnn.targets.machine import load_machine
from ccnn.targets.verify import verify_program

CORPUS = Path(os.environ.get("CCNN_CORPUS", Path(__file__).parents[2] / "shared" / "corpus"))
SHIPPED = sorted(DATA.glob("*/model*.onnx"))
SHIPPED_NAMES = {p.parent.name + "/" + p.name for p in SHIPPED}
FURTHER = [
    p
    for p in sorted((CORPUS / "tiny").glob("*/model*.onnx"))
    if p.parent.name + "/" + p.name not in SHIPPED_NAMES
]
FLEXIBLE = ("ccnn-flex", "flexsa-1g1f", "intergrad-32")
SEVERAL = ("flexsa-1g4c", "flexsa-4g4c", "flexsa-4g1f")
SMALLEST = ("lenet5", "mobilenetv1", "squeezenet")
ULP = 2.0**-23


def name_of(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"


def executed(
    path: Path, target: str, dtype: str, **more: Any
) -> tuple[Compilation, dict[str, float]]:
    """Compile, prove safe, execute two steps; the error of every result."""
    truth, inputs = read(path.parent / "ref_f64.npz"), read(path.parent / "inputs.npz")
    lr, momentum, decay = (float(h) for h in truth["hyper"])
    options = CompileOptions(
        target=target,
        dtype=dtype,
        batch=len(inputs["input"]),
        input_gradient=True,
        optimizer=Optimizer("sgd", lr, momentum, decay),
        **more,
    )
    compiled = compile_model(path, options)
    assert verify_program(compiled.program, compiled.machine) == []
    fed = {compiled.model.inputs[0]: inputs["input"], compiled.model.target: inputs["target"]}
    return compiled, errors(truth, run_steps(compiled, fed, 2))


def check(path: Path, dtype: str, found: Mapping[str, float]) -> None:
    """Errors of a step in float64 or float32 are within their bounds."""
    if dtype == "float64":
        worst = worst_by_kind(found)
        assert max(error for error, _ in worst.values()) <= 1e-9, worst
        return
    floor = errors(read(path.parent / "ref_f64.npz"), read(path.parent / "ref_f32.npz"))
    # the float32 reference has no second update: its gradient's error stands for it
    for key, error in found.items():
        known = floor[key] if floor[key] != float("inf") else 10 * floor["w1/" + key[3:]]
        assert error <= 4 * max(known, ULP), (key, error, known)


def check_float64(path: Path, target: str, **more: Any) -> Compilation:
    compiled, found = executed(path, target, "float64", **more)
    check(path, "float64", found)
    return compiled


def check_float32(path: Path) -> None:
    check(path, "float32", executed(path, "wavecore", "float32")[1])


def interleaved(target: str) -> str:
    """How gradients are interleaved wherever they fit: by elements where the array can."""
    return "element" if load_machine(target).turning_mode else "tile"


@pytest.mark.parametrize("path", SHIPPED, ids=name_of)
def test_float64(path: Path) -> None:
    check_float64(path, "wavecore")


@pytest.mark.parametrize("path", SHIPPED, ids=name_of)
def test_float32(path: Path) -> None:
    check_float32(path)


@pytest.mark.slow
@pytest.mark.parametrize("path", [p for p in SHIPPED if p.parent.name in SMALLEST], ids=name_of)
def test_smallest_machine(path: Path) -> None:
    check_float64(path, "tiny")


@pytest.mark.slow
@pytest.mark.parametrize("target", FLEXIBLE)
@pytest.mark.parametrize("path", [p for p in SHIPPED if p.name == "model.onnx"], ids=name_of)
def test_flexible_arrays(path: Path, target: str) -> None:
    """Modes and flows as the mapper chooses them, and gradients interleaved wherever they fit."""
    check_float64(path, target, interleave=interleaved(target))


@pytest.mark.slow
@pytest.mark.parametrize("target", SEVERAL)
@pytest.mark.parametrize("path", [p for p in SHIPPED if p.name == "model.onnx"], ids=name_of)
def test_several_arrays(path: Path, target: str) -> None:
    check_float64(path, target, interleave="tile")


@pytest.mark.skipif(not FURTHER, reason=f"no model corpus at {CORPUS}; set CCNN_CORPUS")
class TestCorpus:
    """The same over the rest of the corpus."""

    @pytest.mark.parametrize("path", FURTHER, ids=name_of)
    def test_float64(self, path: Path) -> None:
        check_float64(path, "wavecore")

    @pytest.mark.parametrize("path", FURTHER, ids=name_of)
    def test_float32(self, path: Path) -> None:
        check_float32(path)

    @pytest.mark.slow
    @pytest.mark.parametrize("path", [p for p in FURTHER if p.parent.name in SMALLEST], ids=name_of)
    def test_smallest_machine(self, path: Path) -> None:
        check_float64(path, "tiny")

    @pytest.mark.slow
    @pytest.mark.parametrize("target", FLEXIBLE)
    @pytest.mark.parametrize("path", [p for p in FURTHER if p.name == "model.onnx"], ids=name_of)
    def test_flexible_arrays(self, path: Path, target: str) -> None:
        check_float64(path, target, interleave=interleaved(target))

    @pytest.mark.slow
    @pytest.mark.parametrize("target", SEVERAL)
    @pytest.mark.parametrize("path", [p for p in FURTHER if p.name == "model.onnx"], ids=name_of)
    def test_several_arrays(self, path: Path, target: str) -> None:
        check_float64(path, target, interleave="tile")
