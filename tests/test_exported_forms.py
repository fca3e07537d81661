"""What exporters make of models in training and with their default options."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from onnx_models import I64, build, feeds, one, results

from ccnn.compiler.driver import CompileOptions, compile_model
from ccnn.compiler.execution import run_steps, verify_values
from ccnn.compiler.reader import ReadError, ReadOptions, ReadResult, read_model

X = (4, 3)
NCHW = (2, 3, 5, 5)
W = np.random.default_rng(0).standard_normal((3, 3, 3, 3)).astype(np.float32)


def constant(name: str, value: Any) -> onnx.NodeProto:
    value = numpy_helper.from_array(np.asarray(value))
    return helper.make_node("Constant", [], [name], value=value)


def notes(result: ReadResult) -> str:
    return " ".join(p.why for p in result.report.problems)


def test_model_that_ends_in_its_loss() -> None:
    """It has no output but its loss, and labels are drawn among its classes."""
    weights = {"w": np.eye(3, 7, dtype=np.float32)}
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("SoftmaxCrossEntropyLoss", ["h", "labels"], ["cost"]),
    ]
    model = build(nodes, {"x": X, "labels": X[:1]}, ["cost"], weights, labels=I64)
    c = compile_model(model, CompileOptions(dtype="float64"))
    errors = verify_values(c)
    assert {e.name for e in errors} == {"loss", "grad/w", "w1/w"}
    assert all(e.error <= e.bound for e in errors)
    inputs = {"x": np.zeros(X), "labels": np.full(X[:1], 6)}
    assert run_steps(c, inputs, 1)["loss"] == pytest.approx(np.log(7))


def test_norms_folded_by_the_default_export_are_told() -> None:
    """torch.onnx.export(dynamo=True) folds norms, keeps the names, and says so at each node."""
    weights = {"conv1.weight": W, "conv1.bias": W[:, 0, 0, 0]}
    node = helper.make_node("Conv", ["x", *weights], ["y"], name="conv")
    node.metadata_props.add(key="pkg.onnxscript.rewriter.rule_name", value="FuseBatchNormIntoConv")
    told = notes(read_model(build([node], {"x": NCHW}, ["y"], weights)))
    assert "BatchNormalization is folded into a node ('conv': FuseBatchNormIntoConv)" in told


@pytest.mark.parametrize(("name", "trained"), [("val_4", set()), ("norm.weight", {"norm.weight"})])
def test_ones_with_a_generated_name_do_not_scale_a_norm(name: str, trained: set[str]) -> None:
    """affine=False is written as ones and zeros, which some exporters store as initializers."""
    weights = {name: np.ones(3, np.float32), "bias": np.zeros(3, np.float32)}
    model = one("InstanceNormalization", NCHW, weights=weights)
    assert {t.name for t in read_model(model).graph.of_role("parameter")} == trained | {"bias"}


# ---- random layers

LIKE = helper.make_node("RandomUniformLike", ["like"], ["u"], low=0.0, high=1.0)
DEPTHS = {
    "less": [LIKE, helper.make_node("Less", ["u", "p"], ["b"]),
             helper.make_node("Cast", ["b"], ["k"], to=1)],
    "greater": [LIKE, helper.make_node("Greater", ["p", "u"], ["b"]),
                helper.make_node("CastLike", ["b", "like"], ["k"])],
    "floor": [LIKE, helper.make_node("Add", ["p", "u"], ["b"]),
              helper.make_node("Floor", ["b"], ["k"])],
    "shape": [helper.make_node("RandomUniform", [], ["u"], shape=[4, 1]),
              helper.make_node("LessOrEqual", ["u", "p"], ["b"]),
              helper.make_node("Cast", ["b"], ["k"], to=1)],
    "bernoulli": [helper.make_node("Expand", ["p", "shape"], ["all"]),
                  helper.make_node("Bernoulli", ["all"], ["k"])],
}  # fmt: skip


def depth(form: str) -> onnx.ModelProto:
    """x times a factor for each sample: 1/p with probability p = 0.75, else 0."""
    nodes = [
        constant("like", np.zeros((4, 1), np.float32)), constant("p", np.float32(0.75)),
        constant("shape", np.asarray([4, 1])), *DEPTHS[form],
        helper.make_node("Div", ["k", "p"], ["factor"]),
        helper.make_node("Mul", ["x", "factor"], ["y"]), helper.make_node("Relu", ["y"], ["z"]),
    ]  # fmt: skip
    return build(nodes, {"x": X}, ["z"])


@pytest.mark.parametrize("form", DEPTHS)
def test_stochastic_depth_is_left_out(form: str) -> None:
    result = read_model(depth(form), ReadOptions(loss="mse"))
    assert [n.op for n in result.graph.nodes] == ["relu", "mse"]
    assert "1 random layers are left out" in notes(result)


@pytest.mark.parametrize("form", DEPTHS)
def test_stochastic_depth_is_kept_when_asked(form: str) -> None:
    model, seen = depth(form), set()
    for seed in range(8):
        got = results(model, {"x": np.ones(X)}, dropout=True, dropout_seed=seed)[0]
        assert (got == got[:, :1]).all()
        seen |= set(got[:, 0].round(6))
    assert seen == {0.0, 1.333333}


def test_stochastic_depth_compiles_when_kept() -> None:
    c = compile_model(depth("less"), CompileOptions(dtype="float64", dropout=True, loss="mse"))
    assert all(e.error <= e.bound for e in verify_values(c))


def test_batch_of_random_numbers_follows_the_models() -> None:
    result = read_model(depth("less"), ReadOptions(loss="mse", batch=6, dropout=True))
    assert result.graph["z"].shape == (6, 3)


def test_noise_is_left_out() -> None:
    nodes = [
        helper.make_node("RandomNormalLike", ["x"], ["n"], mean=0.5, scale=2.0),
        constant("s", np.float32(3)), helper.make_node("Mul", ["n", "s"], ["m"]),
        helper.make_node("Add", ["x", "m"], ["y"]),
    ]  # fmt: skip
    model = build(nodes, {"x": X}, ["y"])
    data = feeds(model)
    np.testing.assert_allclose(results(model, data)[0], data["x"] + 1.5, rtol=1e-6)


def test_noise_is_normal_when_asked() -> None:
    node = helper.make_node("RandomNormalLike", ["x"], ["n"], mean=0.5, scale=2.0)
    model = build([node, helper.make_node("Add", ["x", "n"], ["y"])], {"x": (200, 50)}, ["y"])
    drawn = results(model, {"x": np.zeros((200, 50))}, dropout=True)[0]
    steps = np.linspace(-2.5, 2.5, 11)
    share = [(drawn < 0.5 + 2 * z).mean() for z in steps]
    normal = [0.5 * (1 + math.erf(z / math.sqrt(2))) for z in steps]
    np.testing.assert_allclose(share, normal, atol=0.02)  # four deviations of 10,000 numbers
    other = results(model, {"x": np.zeros((200, 50))}, dropout=True, dropout_seed=5)[0]
    assert abs(np.corrcoef(drawn.reshape(-1), other.reshape(-1))[0, 1]) < 0.05


UNIFORM = helper.make_node("RandomUniformLike", ["x"], ["u"])
BAD = {
    "not affine": [UNIFORM, helper.make_node("Exp", ["u"], ["n"]),
                   helper.make_node("Mul", ["x", "n"], ["y"])],
    "against data": [UNIFORM, helper.make_node("Less", ["x", "u"], ["n"]),
                     helper.make_node("Where", ["n", "x", "x"], ["y"])],
    "a choice": [UNIFORM, helper.make_node("Greater", ["u", "p"], ["n"]),
                 helper.make_node("Where", ["n", "x", "p"], ["y"])],
    "not uniform": [helper.make_node("RandomNormalLike", ["x"], ["u"]),
                    helper.make_node("Floor", ["u"], ["n"]),
                    helper.make_node("Mul", ["x", "n"], ["y"])],
}  # fmt: skip


@pytest.mark.parametrize("form", BAD)
def test_mean_that_is_not_known_is_refused(form: str) -> None:
    with pytest.raises(ReadError, match="random"):
        read_model(build([constant("p", np.float32(0.5)), *BAD[form]], {"x": X}, ["y"]))


# ---- what rounding may do


def test_squares_of_negative_numbers_have_a_bound() -> None:
    """Older exports square by a power of two, which is disturbed nowhere: else it is no number."""
    nodes = [
        constant("two", np.float32(2)), helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Pow", ["h", "two"], ["y"]),
    ]  # fmt: skip
    weights = {"w": -np.eye(3, 5, dtype=np.float32)}
    c = compile_model(
        build(nodes, {"x": X}, ["y"], weights), CompileOptions(dtype="float64", loss="mse")
    )
    assert all(e.error <= e.bound < 1e-9 for e in verify_values(c))


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_small_loss_is_the_difference_of_large_scores(dtype: str) -> None:
    """Scores that leave no doubt: a loss of e^-20, of which no more than a unit of 20 is kept."""
    nodes = [
        constant("up", np.float32([[20, 0]])), helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Add", ["h", "up"], ["y"]),
    ]  # fmt: skip
    model = build(nodes, {"x": (1, 3)}, ["y"], {"w": np.zeros((3, 2), np.float32)})
    c = compile_model(model, CompileOptions(dtype=dtype))
    errors = [e for seed in range(4) for e in verify_values(c, seed)]
    assert all(e.error <= e.bound for e in errors)


# ---- branches


def branch(*nodes: onnx.NodeProto, result: str, **weights: Any) -> onnx.GraphProto:
    held = [numpy_helper.from_array(np.asarray(v), k) for k, v in weights.items()]
    return helper.make_graph(
        list(nodes), "branch", [], [helper.make_empty_tensor_value_info(result)], held
    )


def squeezed_if_one(width: int, condition: str = "is_one") -> onnx.ModelProto:
    """What the older exporter makes of squeeze(-1) where it does not know the shape."""
    yes = branch(helper.make_node("Squeeze", ["h", "last"], ["s"]), result="s", last=[-1])
    inner = helper.make_node(
        "If", ["is_one"], ["n"], then_branch=branch(result="h"),
        else_branch=branch(helper.make_node("Exp", ["h"], ["e"]), result="e"),
    )  # fmt: skip
    nodes = [
        helper.make_node("Relu", ["x"], ["h"]), helper.make_node("Shape", ["h"], ["shape"]),
        constant("two", 2), constant("one", 1), helper.make_node("Gather", ["shape", "two"], ["d"]),
        helper.make_node("Equal", ["d", "one"], ["is_one"]),
        helper.make_node("ReduceMax", ["h"], ["data"], keepdims=0),
        helper.make_node("If", [condition], ["y"], then_branch=yes,
                         else_branch=branch(inner, result="n")),
    ]  # fmt: skip
    return build(nodes, {"x": (4, 3, width)}, ["y"])


@pytest.mark.parametrize(("width", "op"), [(1, "reshape"), (2, "exp")])
def test_branch_that_is_known_stands_in_place_of_its_if(width: int, op: str) -> None:
    model = squeezed_if_one(width)
    graph = read_model(model, ReadOptions(loss="mse")).graph
    assert [n.op for n in graph.nodes] == ["relu", op, "mse"]
    data = feeds(model)
    expected = np.maximum(data["x"], 0)
    expected = expected[..., 0] if width == 1 else np.exp(expected)
    np.testing.assert_allclose(results(model, data)[0], expected, rtol=1e-6)


def test_branch_that_data_choose_is_refused() -> None:
    with pytest.raises(ReadError, match="control flow cannot be scheduled"):
        read_model(squeezed_if_one(2, "data"))


# ---- what is no parameter


def test_buffers_are_constants_where_the_file_tells_them() -> None:
    """torch.export knows parameters from buffers, and its exporter writes it at each value."""
    weights = {"w": W, "grid": np.ones((3, 3), np.float32)}
    state = {k: np.ones(3, np.float32) for k in ("scale", "bias", "mean", "var")}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["h"]), helper.make_node("Add", ["h", "grid"], ["g"]),
        helper.make_node("BatchNormalization", ["g", *state], ["y"]),
    ]  # fmt: skip
    model = build(nodes, {"x": NCHW}, ["y"], weights | state)
    for name in (*weights, *state):
        value = helper.make_tensor_value_info(name, 1, None)
        kind = "BUFFER" if name in ("grid", "mean", "var") else "PARAMETER"
        value.metadata_props.add(key="pkg.torch.export.graph_signature.InputSpec.kind", value=kind)
        model.graph.value_info.append(value)
    result = read_model(model)
    assert {t.name for t in result.graph.of_role("parameter")} == {"w", "scale", "bias"}
    assert {t.name for t in result.graph.of_role("state")} == {"mean", "var"}
    assert "1 initializers are buffers, as the file says ('grid')" in notes(result)


def test_filter_in_a_constant_node_stays_beside_weights_in_initializers() -> None:
    """The filter of a blur, where the file keeps what is trained elsewhere."""
    blur = np.full((3, 1, 2, 2), 0.25, np.float32)
    nodes = [
        constant("blur", blur), helper.make_node("Conv", ["x", "w"], ["h"]),
        helper.make_node("Conv", ["h", "blur"], ["y"], group=3),
    ]  # fmt: skip
    graph = read_model(build(nodes, {"x": NCHW}, ["y"], {"w": W})).graph
    assert {t.name for t in graph.of_role("parameter")} == {"w"}


def test_class_beside_its_scores_is_left_out() -> None:
    """Many classifiers give both; the class has no gradient.  Alone it is refused."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["scores"]),
        helper.make_node("ArgMax", ["scores"], ["best"], axis=1),
        helper.make_node("Cast", ["best"], ["label"], to=onnx.TensorProto.FLOAT),
    ]
    weights = {"w": np.eye(3, 7, dtype=np.float32)}
    result = read_model(build(nodes, {"x": X}, ["label", "scores"], weights))
    assert result.outputs == ("scores",)
    assert "the output 'label' is left out: ArgMax selects by data" in notes(result)
    with pytest.raises(ReadError, match="it selects by data, which has no fixed schedule"):
        read_model(build(nodes, {"x": X}, ["label"], weights))
