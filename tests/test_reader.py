"""What the reader makes of a model: parameters and constants, norms, batch, loss; small models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from onnx_models import I64, NCHW, X, build, feeds, ints, one, r, results, runtime

from ccnn.compiler.reader import ReadError, ReadOptions, read_model
from ccnn.compiler.reader.weights import Draw, draw_weight
from ccnn.passes.interpret import interpret

W = r(4, 3, 3, 3)


# ---- what is a parameter, what a constant


def conv(name: str, x: str, y: str, *weights: str, **attrs: Any) -> onnx.NodeProto:
    return helper.make_node("Conv", [x, *weights], [y], name=name, **attrs)


def read(model: onnx.ModelProto, **options: Any) -> Any:
    return read_model(model, ReadOptions(**{"loss": "mse", **options}))


def parameters(graph: Any) -> set[str]:
    return {t.name for t in graph.of_role("parameter")}


def notes(result: Any) -> str:
    return "\n".join(str(p) for p in result.report.problems)


def test_computed_zero_bias_is_no_parameter() -> None:
    nodes = [
        helper.make_node("Shape", ["w"], ["shape"], start=0, end=1),
        helper.make_node("Constant", [], ["zero"], value=numpy_helper.from_array(np.float32(0))),
        helper.make_node("Expand", ["zero", "shape"], ["wide"]),
        helper.make_node("CastLike", ["wide", "x"], ["bias"]),
        conv("c", "x", "y", "w", "bias"),
    ]
    graph = read(build(nodes, {"x": NCHW}, ["y"], {"w": W})).graph
    assert parameters(graph) == {"w"}
    assert graph.nodes[0].inputs == ("x", "w")


def test_identity_makes_a_parameter_of_its_own() -> None:
    nodes = [
        helper.make_node("Identity", ["a.weight"], ["b.weight"]),
        conv("a", "x", "h", "a.weight", pads=[1, 1, 1, 1]),
        conv("b", "h", "y", "b.weight"),
    ]
    graph = read(build(nodes, {"x": NCHW}, ["y"], {"a.weight": r(3, 3, 3, 3)})).graph
    assert parameters(graph) == {"a.weight", "b.weight"}
    np.testing.assert_array_equal(graph.data["a.weight"], graph.data["b.weight"])


def test_shared_parameter_is_one() -> None:
    nodes = [conv("a", "x", "h", "w", pads=[1, 1, 1, 1]), conv("b", "h", "y", "w")]
    result = read(build(nodes, {"x": NCHW}, ["y"], {"w": r(3, 3, 3, 3)}))
    assert parameters(result.graph) == {"w"}
    assert len(result.graph.consumers["w"]) == 2
    assert "sum of its gradients" in notes(result)


@pytest.mark.parametrize(("name", "trained"), [("val_3", False), ("head.scale", True)])
def test_scalar_initializer(name: str, trained: bool) -> None:
    node = helper.make_node("Mul", ["x", name], ["y"])
    graph = read(build([node], {"x": X}, ["y"], {name: np.float32(3)})).graph
    assert parameters(graph) == ({name} if trained else set())


def test_weights_in_constant_nodes_are_trained() -> None:
    model = one("Conv", NCHW, consts={"w": W})
    result = read(model)
    assert parameters(result.graph) == {"w"}
    assert "Constant nodes" in notes(result)


def test_scales_in_initializers_are_no_parameters() -> None:
    nodes = [
        helper.make_node("Concat", ["one", "two"], ["scales"], axis=0),
        helper.make_node("Resize", ["x", "", "scales"], ["y"]),
    ]
    weights = {"one": np.ones(2, np.float32), "two": np.full(2, 2, np.float32)}
    assert parameters(read(build(nodes, {"x": NCHW}, ["y"], weights)).graph) == set()


def test_parameter_that_is_reshaped_keeps_its_name() -> None:
    nodes = [
        helper.make_node("Transpose", ["w"], ["wt"], perm=[1, 0]),
        helper.make_node("MatMul", ["x", "wt"], ["y"]),
    ]
    graph = read(build(nodes, {"x": X}, ["y"], {"w": r(5, 6)})).graph
    assert parameters(graph) == {"w"}
    assert [n.op for n in graph.nodes[:2]] == ["transpose", "matmul"]


def test_parameter_names_win_over_names_of_helpers() -> None:
    """A helper tensor may not take the name of an initializer that is read later."""
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["y"], name="g", alpha=2.0),
        helper.make_node("Add", ["y", "g/matmul"], ["z"]),
        helper.make_node("Add", ["z", "const"], ["v"]),
    ]
    weights = {"w": r(6, 6), "b": r(6), "g/matmul": r(6), "const": r(6)}
    assert parameters(read(build(nodes, {"x": X}, ["v"], weights)).graph) == set(weights)


@pytest.mark.parametrize("kind", [np.float16, np.float64])
def test_other_float_types_become_float32(kind: type) -> None:
    graph = build([conv("c", "x", "y", "w")], {"x": NCHW}, ["y"], {"w": W.astype(kind)})
    result = read(graph)
    assert result.graph.data["w"].dtype == np.float32
    assert "become float32" in notes(result)


# ---- batch normalisation


def norm_model(**attrs: Any) -> onnx.ModelProto:
    weights = {"s": r(3), "b": r(3), "m": r(3), "v": np.abs(r(3))}
    opset = attrs.pop("opset", 17)
    names = [f"y{k}" for k in range(attrs.pop("outputs", 1))]
    node = helper.make_node("BatchNormalization", ["x", *weights], names, name="bn", **attrs)
    return build([node], {"x": (4, 3, 5, 5)}, ["y0"], weights, opset)


@pytest.mark.parametrize(
    "attrs",
    [{}, {"training_mode": 1, "outputs": 3}, {"opset": 9}, {"opset": 9, "outputs": 5},
     {"opset": 7, "outputs": 4}],
)  # fmt: skip
@pytest.mark.parametrize("unbiased", [True, False])
def test_batch_norm_trains_in_every_form(attrs: dict[str, Any], unbiased: bool) -> None:
    model = norm_model(momentum=0.8, epsilon=0.01, **attrs)
    result = read(model, unbiased_variance=unbiased)
    graph = result.graph
    assert parameters(graph) == {"s", "b"}
    assert {t.name for t in graph.of_role("state")} == {"m", "v"}
    x = feeds(model)["x"].astype(np.float64)
    values = interpret(graph, {"x": x, "target": np.zeros(x.shape)})
    mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), ddof=int(unbiased))
    norm = next(n for n in graph.nodes if n.op == "batch_norm")
    data = graph.data
    np.testing.assert_allclose(values[norm.outputs[1]], 0.8 * data["m"] + 0.2 * mean, rtol=1e-6)
    np.testing.assert_allclose(values[norm.outputs[2]], 0.8 * data["v"] + 0.2 * var, rtol=1e-6)
    xhat = (x - mean[:, None, None]) / np.sqrt(x.var((0, 2, 3)) + 0.01)[:, None, None]
    expected = xhat * data["s"][:, None, None] + data["b"][:, None, None]
    np.testing.assert_allclose(values[result.outputs[0]], expected, rtol=1e-5, atol=1e-7)


def test_norms_that_share_statistics_are_kept_apart() -> None:
    names = ["s", "b", "m", "v"]
    nodes = [
        helper.make_node("BatchNormalization", ["x", *names], ["h"], name="first"),
        helper.make_node("BatchNormalization", ["h", *names], ["y"], name="second"),
    ]
    weights = {"s": r(3), "b": r(3), "m": r(3), "v": np.abs(r(3))}
    result = read(build(nodes, {"x": NCHW}, ["y"], weights))
    assert {t.name for t in result.graph.of_role("state")} == {"m", "v", "m.second", "v.second"}
    assert "PRESERVE" in notes(result)


def test_folded_norms_are_suspected() -> None:
    nodes = [conv("conv1", "x", "h", "onnx::Conv_1", "b"), conv("conv2", "h", "y", "w2", "b")]
    weights = {"onnx::Conv_1": r(4, 3, 3, 3), "w2": r(4, 4, 3, 3), "b": r(4)}
    result = read(build(nodes, {"x": NCHW}, ["y"], weights))
    assert "folded" in notes(result)
    assert "do_constant_folding=False" in notes(result)


# ---- batch


def flat_model(batch: Any, shape: list[int]) -> onnx.ModelProto:
    nodes = [
        helper.make_node("Reshape", ["x", "shape"], ["h"], name="flatten"),
        helper.make_node("Relu", ["h"], ["y"]),
    ]
    return build(nodes, {"x": (batch, 3, 4)}, ["y"], {"shape": ints(*shape)})


@pytest.mark.parametrize(("batch", "expected"), [(None, 1), (5, 5)])
def test_symbolic_batch(batch: int | None, expected: int) -> None:
    result = read(flat_model("N", [0, -1]), batch=batch)
    assert result.graph["x"].shape == (expected, 3, 4)
    assert result.graph["y"].shape == (expected, 12)
    assert bool(result.report.assumed) == (batch is None)


@pytest.mark.parametrize("shape", [[2, 12], [2, -1], [0, -1], [-1, 12]])
def test_fixed_batch_is_replaced(shape: list[int]) -> None:
    assert read(flat_model(2, shape), batch=7).graph["y"].shape == (7, 12)


@pytest.mark.parametrize("shape", [[6, 4], [1, 24], [3, 2, 4]])
def test_batch_that_cannot_be_replaced_is_a_problem(shape: list[int]) -> None:
    with pytest.raises(ReadError, match="dynamic_axes") as caught:
        read(flat_model(2, shape), batch=7)
    assert caught.value.problems[-1].node == "flatten"


def test_batch_behind_a_transpose_is_a_problem() -> None:
    """[2, N, 4] has a first axis of the file's batch that is not the batch."""
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], perm=[1, 0, 2]),
        helper.make_node("Reshape", ["t", "shape"], ["y"]),
    ]
    model = build(nodes, {"x": (2, 2, 4)}, ["y"], {"shape": ints(2, -1)})
    with pytest.raises(ReadError, match="stay apart"):
        read(model, batch=3)


def test_expansion_to_the_files_batch_is_a_problem() -> None:
    """[1, 3] stretched over two samples may mean the batch or not."""
    nodes = [
        helper.make_node("Expand", ["token", "shape"], ["t"], name="stretch"),
        helper.make_node("Add", ["x", "t"], ["y"]),
    ]
    weights = {"token": r(1, 3), "shape": ints(2, 3)}
    model = build(nodes, {"x": (2, 3)}, ["y"], weights)
    assert read(model, batch=2).graph["y"].shape == (2, 3)
    with pytest.raises(ReadError, match="dynamic_axes"):
        read(model, batch=1)


def test_shape_arithmetic_folds_away() -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Gather", ["s", "zero"], ["n"]),
        helper.make_node("Unsqueeze", ["n", "axis"], ["n1"]),
        helper.make_node("Concat", ["n1", "rest"], ["shape"], axis=0),
        helper.make_node("Reshape", ["x", "shape"], ["y"]),
    ]
    weights = {"zero": np.int64(0), "axis": ints(0), "rest": ints(-1)}
    graph = read(build(nodes, {"x": ("N", 3, 4)}, ["y"], weights), batch=6).graph
    assert [n.op for n in graph.nodes] == ["reshape", "mse"]
    assert graph["y"].shape == (6, 12)


# ---- loss


def scores(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def cross_entropy(x: np.ndarray, labels: np.ndarray) -> float:
    chosen = np.take_along_axis(scores(x.astype(np.float64)), labels[:, None], 1)
    return float(-np.log(chosen).mean())


@pytest.mark.parametrize("ending", ["Identity", "Softmax", "LogSoftmax"])
@pytest.mark.parametrize("shape", [(4, 5), (2, 5, 3, 3)])
def test_cross_entropy_of_scores_and_probabilities(ending: str, shape: tuple[int, ...]) -> None:
    axis = {} if ending == "Identity" else {"axis": 1}
    nodes = [
        helper.make_node("Mul", ["x", "w"], ["h"]), helper.make_node(ending, ["h"], ["y"], **axis)
    ]  # fmt: skip
    model = build(nodes, {"x": shape}, ["y"], {"w": np.asarray(2, np.float32)})
    result = read(model, loss=None)
    labels = np.random.default_rng(3).integers(0, 5, (shape[0], *shape[2:]))
    x = feeds(model)["x"]
    values = interpret(result.graph, {"x": x, "target": labels})
    assert result.target == "target"
    assert values[result.loss] == pytest.approx(cross_entropy(2 * x, labels), rel=1e-6)
    assert ("softmax results" in notes(result)) == (ending != "Identity")


@pytest.mark.parametrize("negative_log_likelihood", [True, False])
def test_loss_of_the_model(negative_log_likelihood: bool) -> None:
    nodes = [helper.make_node("Relu", ["x"], ["h"])]
    if negative_log_likelihood:
        nodes.append(helper.make_node("LogSoftmax", ["h"], ["p"], axis=1))
        nodes.append(helper.make_node("NegativeLogLikelihoodLoss", ["p", "labels"], ["cost"]))
    else:
        nodes.append(helper.make_node("SoftmaxCrossEntropyLoss", ["h", "labels"], ["cost"]))
    model = build(nodes, {"x": (4, 5), "labels": (4,)}, ["h", "cost"], labels=I64)
    result = read(model, loss=None)
    assert (result.loss, result.target, result.outputs) == ("cost", "labels", ("h",))
    x, labels = feeds(model)["x"], np.asarray([0, 4, 2, 1])
    values = interpret(result.graph, {"x": x, "labels": labels})
    assert values["cost"] == pytest.approx(cross_entropy(np.maximum(x, 0), labels), rel=1e-6)


def test_weighted_loss_takes_its_class_weights_as_constants() -> None:
    node = helper.make_node(
        "SoftmaxCrossEntropyLoss", ["x", "labels", "cw"], ["cost"], reduction="sum", ignore_index=2
    )
    weights = {"cw": np.asarray([1, 2, 3, 4, 5], np.float32)}
    model = build([node], {"x": (4, 5), "labels": (4,)}, ["cost"], weights, labels=I64)
    result = read(model, loss=None)
    assert parameters(result.graph) == set()
    x, labels = feeds(model)["x"], np.asarray([0, 4, 2, 1])
    values = interpret(result.graph, {"x": x, "labels": labels})
    expected = runtime(model, {"x": x, "labels": labels})[0]
    assert values["cost"] == pytest.approx(float(expected), rel=1e-5)


def test_target_name_stays_free() -> None:
    """A tensor of the model called 'target' or 'loss' does not stand in the loss's way."""
    nodes = [
        helper.make_node("Relu", ["x"], ["target"]),
        helper.make_node("Exp", ["target"], ["loss"]),
    ]
    result = read(build(nodes, {"x": X}, ["loss"]), loss=None)
    assert result.graph[result.target].dtype == "index"
    assert result.graph[result.loss].shape == ()


# ---- files, dropout, determinism


def test_dropout_stays_active_when_asked() -> None:
    model = one("Dropout", (50, 40), consts={"r": np.float32(0.25), "t": np.asarray(True)})
    assert "dropout" not in {n.op for n in read(model).graph.nodes}
    data = feeds(model)
    y = results(model, data, dropout=True, dropout_seed=4)[0]
    kept = y != 0
    assert 0.7 < kept.mean() < 0.8
    np.testing.assert_allclose(y[kept], data["x0"][kept] / 0.75, rtol=1e-6)


def test_external_data_is_read(tmp_path: Path) -> None:
    model = one("Conv", NCHW, weights={"w": W})
    expected = read(model).graph.data["w"]
    file = tmp_path / "model.onnx"
    onnx.save(model, file, save_as_external_data=True, location="weights.bin", size_threshold=0)
    np.testing.assert_array_equal(read(onnx.load(file)).graph.data["w"], expected)
    assert (tmp_path / "weights.bin").stat().st_size >= W.nbytes
    result = read_model(file, ReadOptions(loss="mse"))
    np.testing.assert_array_equal(result.graph.data["w"], expected)


def test_nodes_out_of_order_are_sorted() -> None:
    nodes = [helper.make_node("Exp", ["h"], ["y"]), helper.make_node("Relu", ["x"], ["h"])]
    graph = read(build(nodes, {"x": X}, ["y"])).graph
    assert [n.op for n in graph.nodes] == ["relu", "exp", "mse"]


def test_unneeded_nodes_do_no_harm() -> None:
    nodes = [helper.make_node("Relu", ["x"], ["y"]), helper.make_node("NonZero", ["x"], ["z"])]
    result = read(build(nodes, {"x": X}, ["y"]))
    assert [n.op for n in result.graph.nodes] == ["relu", "mse"]
    assert result.report.dropped_nodes == 1


def test_functions_are_inlined() -> None:
    body = [helper.make_node("Relu", ["a"], ["t"]), helper.make_node("Exp", ["t"], ["b"])]
    ids = [helper.make_opsetid("", 17)]
    function = helper.make_function("local", "both", ["a"], ["b"], body, ids)
    model = build([helper.make_node("both", ["x"], ["y"], domain="local")], {"x": X}, ["y"])
    model.functions.append(function)
    model.opset_import.append(helper.make_opsetid("local", 1))
    data = feeds(model)
    np.testing.assert_allclose(results(model, data)[0], np.exp(np.maximum(data["x"], 0)), rtol=1e-6)


def test_origins_name_the_onnx_nodes() -> None:
    graph = read(one("Gemm", X, weights={"w": r(6, 5), "b": r(5)}, alpha=2.0)).graph
    assert {n.origin for n in graph.nodes if n.phase == "forward"} == {"it"}


def test_made_up_weights() -> None:
    nodes = [
        helper.make_node("ConstantOfShape", ["ws"], ["w"]),
        helper.make_node("ConstantOfShape", ["bs"], ["b"]),
        conv("c", "x", "y", "w", "b"),
    ]
    model = build(nodes, {"x": (1, 16, 8, 8)}, ["y"], {"ws": ints(32, 16, 3, 3), "bs": ints(32)})
    result = read(model, seed=3)
    assert parameters(result.graph) == {"w", "b"}
    assert not result.graph.data["b"].any()
    assert result.graph.data["w"].std() == pytest.approx(np.sqrt(2 / 144), rel=0.05)
    kind = result.graph.data["w"]
    assert not np.array_equal(kind, read(model, seed=4).graph.data["w"])


def test_draw_is_tied_to_the_name() -> None:
    a, b = (draw_weight(n, (4, 4), Draw("rows"), 0) for n in "ab")
    assert a.dtype == np.float32
    assert not np.array_equal(a, b)


def test_loss_for_each_sample_is_refused() -> None:
    node = helper.make_node("SoftmaxCrossEntropyLoss", ["x", "labels"], ["cost"], reduction="none")
    model = build([node], {"x": (4, 5), "labels": (4,)}, ["cost"], labels=I64)
    with pytest.raises(ReadError, match="reduction='mean'"):
        read(model, loss=None)


def test_norm_over_one_value_is_refused() -> None:
    weights = {"s": r(3), "b": r(3), "m": r(3), "v": np.abs(r(3))}
    node = helper.make_node("BatchNormalization", ["x", *weights], ["y"], name="bn")
    model = build([node], {"x": ("N", 3, 1, 1)}, ["y"], weights)
    assert read(model, batch=2).graph["y"].shape == (2, 3, 1, 1)
    with pytest.raises(ReadError, match="single value"):
        read(model)
