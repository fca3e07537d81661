"""Operators that the reader takes apart, against onnxruntime; on constants they fold away."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from onnx_models import NCHW, X, build, feeds, ints, one, r, results, runtime

from ccnn.compiler.driver import CompileOptions, compile_model
from ccnn.compiler.execution import verify_values
from ccnn.compiler.reader import ReadError, ReadOptions, read_model

CUBE = (2, 3, 4)
PAIRS = ints(0, 1, 2, 2, 1, 0).reshape(3, 2)
ALIKE, APART = np.stack([PAIRS, PAIRS]), np.stack([PAIRS, PAIRS[::-1]])
ROWS = ints(1, 0, 0, -1).reshape(2, 2)
EVERY = ints(0, 2, -1, 1).reshape(1, 4, 1).repeat(2, 0)
OVER = EVERY.transpose(0, 2, 1)


def constants(**values: Any) -> list[onnx.NodeProto]:
    """One Constant node for each."""
    arrays = {k: numpy_helper.from_array(np.asarray(v)) for k, v in values.items()}
    return [helper.make_node("Constant", [], [k], value=v) for k, v in arrays.items()]


def two(op: str, a: tuple[int, ...], b: tuple[int, ...], places: Any, **attrs: Any):
    """An operator with constant places between its two data inputs."""
    nodes = [*constants(i=places), helper.make_node(op, ["x0", "i", "x1"], ["y0"], **attrs)]
    return build(nodes, {"x0": a, "x1": b}, ["y0"])


def einsum(equation: str, *shapes: tuple[int, ...]) -> onnx.ModelProto:
    return one("Einsum", *shapes, equation=equation)


CASES: dict[str, onnx.ModelProto] = {
    **{op: one(op, X) for op in ("Sin", "Cos", "Tan")},
    "Shrink": one("Shrink", X, bias=0.3, lambd=0.7),
    "ReduceLogSumExp": one("ReduceLogSumExp", NCHW, axes=[-1, 2], keepdims=0, opset=13),
    "ReduceLogSumExp all": one("ReduceLogSumExp", X, opset=18),
    "ReduceLogSum": build(
        [helper.make_node("Exp", ["x0"], ["e"]),
         helper.make_node("ReduceLogSum", ["e"], ["y0"], axes=[1])], {"x0": X}, ["y0"],
    ),
    "MeanVarianceNormalization": one("MeanVarianceNormalization", NCHW),
    "GatherND": one("GatherND", CUBE, consts={"i": ROWS}),
    "GatherND elements": one("GatherND", (3, 4), consts={"i": PAIRS}),
    "GatherND alike": one("GatherND", (2, 3, 3, 2), consts={"i": ALIKE}, batch_dims=1),
    "GatherND apart": one("GatherND", (2, 3, 3), consts={"i": APART}, batch_dims=1),
    "GatherElements": one("GatherElements", CUBE, consts={"i": EVERY}, axis=1),
    "ScatterND": two("ScatterND", CUBE, (2, 4), ROWS),
    "ScatterND elements": two("ScatterND", (3, 4), (3,), PAIRS),
    "ScatterElements": two("ScatterElements", CUBE, (2, 1, 4), OVER, axis=1),
    "CumSum": one("CumSum", CUBE, consts={"a": np.int64(1)}),
    "CumSum from the end": one("CumSum", CUBE, consts={"a": np.int64(-1)}, reverse=1, exclusive=1),
    "Trilu": one("Trilu", CUBE, consts={"k": np.int64(1)}),
    "Trilu lower": one("Trilu", CUBE, upper=0),
    "Xor": build(
        [helper.make_node("Greater", ["x0", "x1"], ["c"]), *constants(z=np.float32(0)),
         helper.make_node("Less", ["x0", "z"], ["d"]), helper.make_node("Xor", ["c", "d"], ["e"]),
         helper.make_node("Where", ["e", "x0", "x1"], ["y0"])], {"x0": X, "x1": X}, ["y0"],
    ),
    "Einsum product": einsum("nchw,cd->ndhw", (2, 3, 4, 5), (3, 6)),
    "Einsum batches": einsum("bhid,bhjd->bhij", (2, 3, 4, 5), (2, 3, 6, 5)),
    "Einsum outer": einsum("i,j->ji", (3,), (4,)),
    "Einsum implicit": einsum("ba,cb", (2, 3), (4, 2)),
    "Einsum sums": einsum("abc,cd->ad", (2, 3, 4), (4, 5)),
    "Einsum one": einsum("abc->ca", (2, 3, 4)),
    "Einsum three": einsum("ab,bc,cd->ad", (2, 3), (3, 4), (4, 5)),
    "Einsum dots": einsum("...ij,...jk->...ik", (2, 3, 4, 5), (2, 3, 5, 6)),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_operator(name: str) -> None:
    model = CASES[name]
    data = feeds(model)
    for mine, theirs in zip(results(model, data), runtime(model, data), strict=True):
        assert mine.shape == theirs.shape
        np.testing.assert_allclose(mine, theirs, rtol=3e-5, atol=3e-6)


def test_rms_normalization() -> None:
    """Of operator set 23, which onnxruntime need not know."""
    scale = r(6)
    model = one("RMSNormalization", X, weights={"s": scale}, opset=23, epsilon=0.01)
    x = feeds(model)["x0"].astype(np.float64)
    expected = x / np.sqrt((x * x).mean(-1, keepdims=True) + 0.01) * scale
    np.testing.assert_allclose(results(model, feeds(model))[0], expected, rtol=1e-6)


FOLDED = {
    "GatherND": ([r(2, 3, 4), ROWS], {}),
    "GatherND batch": ([r(2, 3, 3), APART], {"batch_dims": 1}),
    "GatherElements": ([r(2, 3, 4), EVERY], {"axis": 1}),
    "ScatterND": ([r(2, 3, 4), ROWS, r(2, 4)], {}),
    "ScatterElements": ([r(2, 3, 4), OVER, r(2, 1, 4)], {"axis": -2}),
    "CumSum": ([r(2, 3), np.int64(-1)], {"reverse": 1, "exclusive": 1}),
    "Trilu": ([r(3, 4), np.int64(-1)], {"upper": 0}),
    "Clip": ([r(2, 3), np.float32(-0.1), np.float32(0.5)], {}),
    "Sin": ([r(2, 3)], {}),
    "Cos": ([r(2, 3)], {}),
    "ReduceMean": ([r(2, 3)], {"axes": [0]}),
}


@pytest.mark.parametrize("name", FOLDED)
def test_constants_fold_away(name: str) -> None:
    values, attrs = FOLDED[name]
    named = {f"c{k}": v for k, v in enumerate(values)}
    node = helper.make_node(name.split()[0], list(named), ["k"], **attrs)
    nodes = [*constants(**named), node, helper.make_node("Mul", ["x", "k"], ["y"])]
    model = build(nodes, {"x": (1,)}, ["y"])
    assert [n.op for n in read_model(model, ReadOptions(loss="mse")).graph.nodes] == ["mul", "mse"]
    data = feeds(model)
    np.testing.assert_allclose(results(model, data)[0], runtime(model, data)[0], rtol=1e-6)


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (einsum("ii->i", (3, 3)), "takes a diagonal"),
        (einsum("ij,jk->ik", (2, 3), (4, 5)), "the axis j has the sizes 3 and 4"),
        (einsum("ij->ijk", (2, 3)), "makes up an axis"),
        (einsum("ijk->i", (2, 3)), r"does not fit its input \[2, 3\]"),
        (one("GatherND", (3, 3), consts={"i": ints(0, 3).reshape(1, 2)}), "lie outside"),
        (two("ScatterND", (3, 4), (3,), PAIRS, reduction="add"), "reduction='add'"),
    ],
)
def test_refusals(model: onnx.ModelProto, why: str) -> None:
    with pytest.raises(ReadError, match=why):
        read_model(model)


def batch_norm(training: int) -> onnx.ModelProto:
    """Weight standardisation: a batch norm of the weights, its statistics computed in the model."""
    weights = {"w": r(4, 3, 3, 3), "g": 1 + r(4), "b": r(4)}
    outs = ["n", "m2", "v2"][: 3 if training else 1]
    nodes = [
        *constants(flat=ints(1, 4, 27), full=ints(4, 3, 3, 3)),
        helper.make_node("Reshape", ["w", "flat"], ["r"]),
        helper.make_node("ReduceMean", ["r"], ["m"], axes=[0, 2], keepdims=0),
        helper.make_node("ReduceMean", ["r"], ["mk"], axes=[0, 2]),
        helper.make_node("Sub", ["r", "mk"], ["s"]), helper.make_node("Mul", ["s", "s"], ["q"]),
        helper.make_node("ReduceMean", ["q"], ["v"], axes=[0, 2], keepdims=0),
        helper.make_node("BatchNormalization", ["r", "g", "b", "m", "v"], outs,
                         training_mode=training),
        helper.make_node("Reshape", ["n", "full"], ["std"]),
        helper.make_node("Conv", ["x", "std"], ["y"]),
    ]  # fmt: skip
    return build(nodes, {"x": NCHW}, ["y"], weights)


@pytest.mark.parametrize("training", [0, 1])
def test_batch_norm_of_computed_statistics(training: int) -> None:
    model = batch_norm(training)
    data = feeds(model)
    np.testing.assert_allclose(results(model, data)[0], runtime(model, data)[0], rtol=1e-4)
    c = compile_model(model, CompileOptions(dtype="float64", loss="mse"))
    errors = verify_values(c)
    assert {e.name for e in errors} >= {"grad/w", "grad/g", "grad/b"}
    assert all(e.error <= e.bound for e in errors)


def test_condition_on_trained_values_is_a_factor() -> None:
    """x w where that exceeds a half: the gradient is that of the kept values."""
    nodes = [
        *constants(half=np.float32(0.5)), helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Greater", ["h", "half"], ["c"]),
        helper.make_node("Cast", ["c"], ["k"], to=1), helper.make_node("Mul", ["h", "k"], ["y"]),
    ]  # fmt: skip
    c = compile_model(
        build(nodes, {"x": X}, ["y"], {"w": r(6, 3)}), CompileOptions(dtype="float64", loss="mse")
    )
    assert all(e.error <= e.bound for e in verify_values(c))


def test_parameter_met_first_as_running_statistics_keeps_its_name() -> None:
    """Exporters store equal tensors once: here a variance of ones and a later norm's scale."""
    weights = {"s": r(3), "ones": np.ones(3, np.float32), "zeros": np.zeros(3, np.float32)}
    state = ["s", "zeros", "ones"]
    nodes = [
        helper.make_node("BatchNormalization", ["x", "s", *state], ["h"], name="one"),
        helper.make_node("BatchNormalization", ["h", "ones", *state], ["y"], name="two"),
    ]
    graph = read_model(build(nodes, {"x": NCHW}, ["y"], weights)).graph
    assert {t.name for t in graph.of_role("parameter")} == {"s", "ones"}
    assert {t.name for t in graph.of_role("state")} == {
        "zeros",
        "ones.one",
        "zeros.two",
        "ones.two",
    }
