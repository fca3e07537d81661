"""Bad models end in a ReadError that names what is wrong, never in anything else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from ccnn.compiler.check import check_model
from ccnn.compiler.reader import ReadError, ReadOptions, read_model

F, I64 = TensorProto.FLOAT, TensorProto.INT64
NCHW = (2, 3, 8, 8)


def value(name: str, shape: Any, kind: int = F) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def build(
    nodes: list[onnx.NodeProto], weights: dict[str, np.ndarray] | None = None,
    inputs: list[onnx.ValueInfoProto] | None = None, outputs: tuple[str, ...] = ("y",),
    opset: int = 17,
) -> ModelProto:  # fmt: skip
    graph = helper.make_graph(
        nodes, "bad", [value("x", list(NCHW))] if inputs is None else inputs,
        [helper.make_empty_tensor_value_info(o) for o in outputs],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in (weights or {}).items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def node(op: str, inputs: list[str], outputs: list[str] | None = None, **attrs: Any):
    outputs = outputs or ["y"]
    return helper.make_node(op, inputs, outputs, name=attrs.pop("name", "culprit"), **attrs)


def w(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)


def ints(*values: int) -> np.ndarray:
    return np.asarray(values, np.int64)


def conv_model() -> ModelProto:
    return build([node("Conv", ["x", "w"])], {"w": w(4, 3, 3, 3)})


def edit(change: Callable[[ModelProto], Any], base: Callable[[], ModelProto] = conv_model):
    """A good model with one thing broken."""
    model = base()
    change(model)
    return model


def set_dims(*dims: int) -> Callable[[ModelProto], None]:
    def change(m: ModelProto) -> None:
        m.graph.initializer[0].dims[:] = dims

    return change


def input_dims(*dims: int | str) -> ModelProto:
    return build([node("Relu", ["x"])], inputs=[value("x", list(dims))])


def norm(**wrong: np.ndarray) -> ModelProto:
    weights = {"s": w(3), "b": w(3), "m": w(3), "v": np.abs(w(3)), **wrong}
    return build([node("BatchNormalization", ["x", "s", "b", "m", "v"])], weights)


def branch() -> ModelProto:
    body = helper.make_graph([helper.make_node("Relu", ["x"], ["o"])], "b", [], [value("o", None)])
    return build(
        [node("If", ["c"], then_branch=body, else_branch=body)],
        inputs=[value("x", list(NCHW)), value("c", [], TensorProto.BOOL)],
    )


def recursive() -> ModelProto:
    ids = [helper.make_opsetid("", 17), helper.make_opsetid("me", 1)]
    call = helper.make_node("f", ["a"], ["b"], domain="me")
    model = build([helper.make_node("f", ["x"], ["y"], domain="me")])
    model.functions.append(helper.make_function("me", "f", ["a"], ["b"], [call], ids))
    model.opset_import.append(ids[1])
    return model


def with_nan() -> ModelProto:
    weight = w(4, 3, 3, 3)
    weight[1, 2, 0, 0] = np.nan
    return build([node("Conv", ["x", "broken.weight"])], {"broken.weight": weight})


def strings() -> ModelProto:
    tensor = helper.make_tensor("w", TensorProto.STRING, [1], [b"text"])
    return edit(lambda m: m.graph.initializer[0].CopyFrom(tensor))


def external(location: str, **facts: str) -> ModelProto:
    def change(m: ModelProto) -> None:
        t = m.graph.initializer[0]
        t.ClearField("raw_data")
        t.data_location = TensorProto.EXTERNAL
        for key, text in {"location": location, **facts}.items():
            t.external_data.add(key=key, value=text)

    return edit(change)


def made_up(*dims: int) -> ModelProto:
    nodes = [node("ConstantOfShape", ["d"], ["w"], name="maker"), node("Conv", ["x", "w"])]
    return build(nodes, {"d": ints(*dims)})


def sized(op: str, numbers: np.ndarray, **attrs: Any) -> ModelProto:
    return build([node(op, ["x", "n"], **attrs)], {"n": numbers})


BAD: dict[str, tuple[ModelProto | bytes, str]] = {
    # not a model
    "empty": (b"", "no nodes"),
    "noise": (bytes(range(256)) * 4, "damaged"),
    "zip": (b"PK\x03\x04abc", "PyTorch checkpoint"),
    "pickle": (b"\x80\x02}q\x00.", "pickle"),
    "web page": (b"<!DOCTYPE html><html></html>", "web page"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    "truncated": (conv_model().SerializeToString()[:-40], "damaged"),
    # structure
    "no nodes": (build([]), "no nodes"),
    "no outputs": (build([node("Relu", ["x"])], outputs=()), "no outputs"),
    "no opset": (edit(lambda m: m.ClearField("opset_import")), "operator set"),
    "old opset": (build([node("Relu", ["x"])], opset=6), "older than 7"),
    "new opset": (build([node("Relu", ["x"])], opset=999), "newer than"),
    "circle": (build([node("Relu", ["y"], ["z"], name="a"), node("Exp", ["z"], name="b")]),
               "circle: a, b"),
    "written twice": (build([node("Relu", ["x"]), node("Exp", ["x"])]), "'y', which is already"),
    "initializer overwritten": (build([node("Relu", ["x"])], {"y": w(1)}), "already an initial"),
    "same initializer twice": (
        edit(lambda m: m.graph.initializer.append(m.graph.initializer[0])),
        "two initializers.*'w'"),
    "nameless initializer": (
        edit(lambda m: m.graph.initializer[0].ClearField("name")), "initializer 0 has no name"),
    "missing initializer": (build([node("Conv", ["x", "gone"])]), "'gone', which nothing provides"),
    "output from nowhere": (build([node("Relu", ["x"])], outputs=("z",)), "output 'z'"),
    "same input twice": (
        build([node("Relu", ["x"])], inputs=[value("x", [1]), value("x", [1])]),
        "two graph inputs"),
    "sparse": (edit(lambda m: m.graph.sparse_initializer.add()), "sparse"),
    "recursive function": (recursive(), "calls itself"),
    "constant output": (
        build([node("Constant", [], value=numpy_helper.from_array(w(2))),
               node("Relu", ["x"], ["z"])], outputs=("y", "z")),
        "'y'.*does not depend on any input"),
    "initializer not utf-8": (
        conv_model().SerializeToString().replace(b"\x01w", b"\x01\xff"), "UTF-8"),
    "not utf-8": (conv_model().SerializeToString().replace(b"culprit", b"c\xff\xfeprit"), "UTF-8"),
    # inputs
    "symbolic height": (input_dims("N", 3, "height", 8), "height.*"),
    "unnamed axis": (
        edit(lambda m: m.graph.input[0].type.tensor_type.shape.dim[2].Clear()), "axis 2.*unnamed"),
    "negative axis": (input_dims(1, 3, -5, 8), "axis 2 has the size -5"),
    "zero axis": (input_dims(1, 3, 0, 8), "axis 2 has the size 0"),
    "absurd axis": (input_dims(1, 3, 2**40, 8), "limit is 2"),
    "absurd product": (input_dims(1, 2**20, 2**20, 1), "1.1e\\+12 elements.*limit is 2"),
    "no shape": (build([node("Relu", ["x"])], inputs=[value("x", None)]), "shape is missing"),
    "text input": (
        build([node("Relu", ["x"])], inputs=[value("x", [1], TensorProto.STRING)]), "STRING"),
    "sequence input": (
        build([node("SequenceAt", ["x", "n"])], {"n": np.int64(0)},
              [helper.make_tensor_sequence_value_info("x", F, [1])]), "'x' is no tensor"),
    # tensors
    "short data": (edit(set_dims(4, 3, 3, 4)), "'w'.*needs 576 bytes"),
    "negative dims": (edit(set_dims(-4, 3, 3, -3)), "'w'.*negative dimension"),
    "huge dims": (edit(set_dims(2**40, 2**40)), "'w'.*limit is 2"),
    "unknown type": (
        edit(lambda m: setattr(m.graph.initializer[0], "data_type", 77)), "'w'.*type 77"),
    "text weights": (strings(), "'w'.*STRING"),
    "nan": (with_nan(), "'broken.weight' holds 1 NaN"),
    "infinite": (
        build([node("Conv", ["x", "w"])], {"w": np.full((4, 3, 3, 3), np.inf, np.float32)}),
        "'w' holds 108 NaN or infinite"),
    "integer weights": (
        build([node("Conv", ["x", "w"])], {"w": np.ones((4, 3, 3, 3), np.int64)}),
        "'w' hold int64"),
    "no filters": (
        build([node("Conv", ["x", "w"])], {"w": w(0, 3, 3, 3)}), "shape \\[2, 0, 6, 6\\]"),
    "external elsewhere": (external("../secret.bin"), "not read from a file"),
    "bad made-up weight": (made_up(2**31, 2**31, 3, 3), "maker.*limit is 2"),
    "negative made-up weight": (made_up(-1, 3, 3, 3), "maker.*negative"),
    "empty made-up weight": (made_up(0, 3, 3, 3), "maker.*\\[0, 3, 3, 3\\]"),
    # operators
    "unknown operator": (build([node("Frobnicate", ["x"])]), "Frobnicate 'culprit'"),
    "typo": (build([node("Convv", ["x"])]), "operators like it: Conv"),
    "foreign domain": (build([node("FusedConv", ["x"], domain="com.microsoft")]), "com.microsoft"),
    "control flow": (branch(), "If 'culprit'.*control flow"),
    "scan": (build([node("Scan", ["x"], num_scan_inputs=1)]), "Scan 'culprit'.*control flow"),
    "quantised": (build([node("QuantizeLinear", ["x", "s"])], {"s": w(1)}), "export the float"),
    "detection": (build([node("TopK", ["x", "k"])], {"k": ints(3)}), "post-processing"),
    "recurrent": (build([node("LSTM", ["x"])]), "recurrent"),
    "cast to integer": (build([node("Cast", ["x"], to=I64)]), "casts data to INT64"),
    "3-D convolution": (
        build([node("Conv", ["x", "w"])], {"w": w(1, 1, 3, 3, 3)}, [value("x", [1, 1, 5, 5, 5])]),
        "spatial axes"),
    "channels differ": (build([node("Conv", ["x", "w"])], {"w": w(4, 5, 3, 3)}), "Conv 'culprit'"),
    "kernel contradicts": (
        build([node("Conv", ["x", "w"], kernel_shape=[5, 5])], {"w": w(4, 3, 3, 3)}),
        "contradicts"),
    "kernel too large": (build([node("Conv", ["x", "w"])], {"w": w(4, 3, 9, 9)}), "'culprit'"),
    "stride 0": (
        build([node("Conv", ["x", "w"], strides=[0, 1])], {"w": w(4, 3, 3, 3)}), "strides"),
    "group 0": (build([node("Conv", ["x", "w"], group=0)], {"w": w(4, 3, 3, 3)}), "'culprit'"),
    "group does not divide": (
        build([node("Conv", ["x", "w"], group=2)], {"w": w(4, 1, 3, 3)}), "3 channels"),
    "dilation 0": (
        build([node("Conv", ["x", "w"], dilations=[0, 1])], {"w": w(4, 3, 3, 3)}), "dilations"),
    "negative pads": (
        build([node("Conv", ["x", "w"], pads=[-9] * 4)], {"w": w(4, 3, 3, 3)}), "negative"),
    "clip to NaN": (
        build([node("Clip", ["x", "n"])], {"n": np.float32(np.nan)}), "Clip 'culprit'.*NaN"),
    "norm epsilon": (
        edit(lambda m: m.graph.node[0].attribute.append(
            helper.make_attribute("epsilon", float("nan"))), norm), "'epsilon' is nan"),
    "lrn size": (build([node("LRN", ["x"], size=0)]), "size=0"),
    "three pads": (build([node("Conv", ["x", "w"], pads=[1, 1, 1])], {"w": w(4, 3, 3, 3)}), "pads"),
    "pads of text": (
        build([node("Conv", ["x", "w"], pads=["a", "b"])], {"w": w(4, 3, 3, 3)}),
        "'pads'.*integers"),
    "unknown auto_pad": (
        build([node("Conv", ["x", "w"], auto_pad="MAYBE")], {"w": w(4, 3, 3, 3)}), "MAYBE"),
    "no kernel": (build([node("MaxPool", ["x"])]), "'kernel_shape' is missing"),
    "pool indices": (
        build([node("MaxPool", ["x"], ["y", "i"], kernel_shape=[2, 2])], outputs=("y", "i")),
        "output 1 \\('i'\\)"),
    "absurd pads": (
        build([node("MaxPool", ["x"], kernel_shape=[2, 2], pads=[2**50] * 4)]), "absurd"),
    "wrong matrix": (build([node("Gemm", ["x", "w"])], {"w": w(5, 4)}), "not two matrices"),
    "matmul": (build([node("MatMul", ["x", "w"])], {"w": w(5, 4)}), "'culprit'"),
    "missing operand": (build([node("Add", ["x"])]), "input 1 is missing"),
    "broadcast": (build([node("Add", ["x", "w"])], {"w": w(7)}), "Add 'culprit'"),
    "norm shape": (norm(s=w(4)), "input 1 \\('s'\\)"),
    "norm variance": (norm(v=-np.ones(3, np.float32)), "'v' is negative"),
    "norm spatial": (
        edit(lambda m: m.graph.node[0].attribute.append(helper.make_attribute("spatial", 0)), norm),
        "spatial=0"),
    "softmax axis": (build([node("Softmax", ["x"], axis=4)]), "axis 4"),
    "reshape": (sized("Reshape", ints(7, 7)), "cannot be reshaped"),
    "reshape twice -1": (sized("Reshape", ints(-1, -1)), "ambiguous"),
    "reshape by data": (build([node("Reshape", ["x", "x"])]), "computed from data"),
    "expand absurd": (sized("Expand", ints(2**39, 1, 1, 1, 1)), "limit is 2|do not|shape"),
    "tile": (sized("Tile", ints(1, 2)), "repeats"),
    "transpose": (build([node("Transpose", ["x"], perm=[0, 1, 1, 2])]), "perm"),
    "concat axis": (build([node("Concat", ["x", "x"], axis=9)]), "axis 9"),
    "split": (sized("Split", ints(1, 1), axis=1), "cuts axis 1"),
    "squeeze": (sized("Squeeze", ints(1)), "not all 1"),
    "gather outside": (sized("Gather", ints(8), axis=1), "outside axis 1"),
    "gather by data": (build([node("Gather", ["x", "x"])]), "lookups"),
    "pad mode": (sized("Pad", ints(0, 0, 0, 0, 1, 1, 1, 1), mode="wrap"), "wrap"),
    "resize scale": (
        build([node("Resize", ["x", "", "s"])], {"s": np.asarray([1, 1, np.nan, 2], np.float32)}),
        "scales"),
    "resize batch": (
        build([node("Resize", ["x", "", "s"])], {"s": np.asarray([2, 1, 1, 1], np.float32)}),
        "axis 0"),
    "depth to space": (build([node("DepthToSpace", ["x"], blocksize=2)]), "blocksize"),
    "slice step 0": (
        build([node("Slice", ["x", "s", "e", "a", "t"])],
              {"s": ints(0), "e": ints(4), "a": ints(1), "t": ints(0)}), "step is 0"),
    "empty result": (
        build([node("Slice", ["x", "s", "e"])], {"s": ints(2), "e": ints(2)}), "shape"),
    "range": (
        build([node("Range", ["a", "b", "c"], ["r"]), node("Reshape", ["x", "r"], name="o")],
              {"a": np.int64(0), "b": np.int64(2**60), "c": np.int64(1)}), "Range 'culprit'"),
    "constant without value": (
        build([node("Constant", [], ["k"]), node("Add", ["x", "k"], name="o")]),
        "Constant 'culprit'"),
    "loss target": (
        build([node("SoftmaxCrossEntropyLoss", ["x", "x"])]), "target is not a graph input|index"),
    "loss input": (
        build([node("NegativeLogLikelihoodLoss", ["x", "t"])],
              inputs=[value("x", [2, 3]), value("t", [2], I64)]), "LogSoftmax"),
    "no class axis": (build([node("Relu", ["x"])], inputs=[value("x", [4])]), "loss.*mse"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_model(name: str) -> None:
    model, message = BAD[name]
    with pytest.raises(ReadError, match=f"(?s){message}") as caught:
        read_model(model)
    assert caught.value.problems
    assert all(p.why for p in caught.value.problems)


def test_every_problem_is_reported_at_once() -> None:
    nodes = [
        node("Frobnicate", ["x"], ["a"], name="first"),
        node("Relu", ["a"], ["b"], name="innocent"),
        node("TopK", ["x", "k"], ["c"], name="second"),
        node("Conv", ["x", "w"], ["d"], name="third"),
        node("Sum", ["b", "c", "d"], name="victim"),
    ]
    with pytest.raises(ReadError) as caught:
        read_model(build(nodes, {"k": ints(1), "w": w(4, 5, 3, 3)}))
    assert [p.node for p in caught.value.problems] == ["first", "second", "third"]


def test_nodes_of_one_name_are_told_apart() -> None:
    graph = read_model(build([node("Relu", ["x"], ["a"]), node("Exp", ["a"])])).graph
    names = [n.name for n in graph.nodes]
    assert len(names) == len(set(names))
    assert [n.origin for n in graph.nodes if n.op in ("relu", "exp")] == ["culprit"] * 2


def test_batch_below_one() -> None:
    with pytest.raises(ReadError, match="batch of 0"):
        read_model(conv_model(), ReadOptions(batch=0))


@pytest.mark.parametrize(
    ("name", "message"),
    [("absent.onnx", "no such file"), ("", "folder"), ("empty.onnx", "empty")],
)
def test_bad_path(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "empty.onnx").write_bytes(b"")
    with pytest.raises(ReadError, match=message):
        read_model(tmp_path / name)


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"location": "../outside.bin"}, "outside the model's folder"),
        ({"location": "/etc/hostname"}, "outside the model's folder"),
        ({"location": "link.bin"}, "outside the model's folder"),
        ({"location": "gone.bin"}, "is missing"),
        ({"location": "short.bin"}, "which has 10"),
        ({"location": "short.bin", "offset": "-4"}, "which has 10"),
        ({"location": "short.bin", "offset": "x"}, "no readable offset"),
        ({"location": "short.bin", "length": "12"}, "external data says 12"),
        ({"location": ""}, "names no file"),
    ],
)
def test_bad_external_data(tmp_path: Path, facts: dict[str, str], message: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "outside.bin").write_bytes(bytes(1000))
    (folder / "short.bin").write_bytes(bytes(10))
    (folder / "link.bin").symlink_to(tmp_path / "outside.bin")
    (folder / "m.onnx").write_bytes(external(**facts).SerializeToString())
    with pytest.raises(ReadError, match=message):
        read_model(folder / "m.onnx")


def small_models() -> list[bytes]:
    """Three models that together touch most of the reader."""
    nodes = [
        node("Conv", ["x", "w"], ["a"], name="c", pads=[1, 1, 1, 1]),
        node("BatchNormalization", ["a", "s", "b", "m", "v"], ["n"], name="bn"),
        node("MaxPool", ["n"], ["p"], name="p", kernel_shape=[2, 2], strides=[2, 2]),
        node("Shape", ["p"], ["sh"], name="sh"),
        node("Gather", ["sh", "zero"], ["g"], name="g"),
        node("Concat", ["g", "rest"], ["t"], name="t", axis=0),
        node("Reshape", ["p", "t"], ["f"], name="f"),
        node("Gemm", ["f", "fw", "fb"], name="fc", transB=1),
    ]
    weights = {"w": w(3, 3, 3, 3), "s": w(3), "b": w(3), "m": w(3), "v": np.abs(w(3)),
               "zero": ints(0), "rest": ints(-1), "fw": w(5, 48), "fb": w(5)}  # fmt: skip
    moving = [
        node("Resize", ["x", "", "sc"], ["a"], name="r", mode="linear"),
        node("Pad", ["a", "pads"], ["b"], name="pad"),
        node("Slice", ["b", "st", "en"], ["d"], name="sl"),
        node("Transpose", ["d"], ["e"], name="tr", perm=[0, 2, 3, 1]),
        node("Split", ["e"], ["q", "z"], name="sp", axis=1, split=[2, 6]),
        node("Expand", ["q", "ex"], ["h"], name="ex"),
        node("ReduceMean", ["h"], ["i"], name="rm", axes=[1, 2], keepdims=0),
        node("Softmax", ["i"], name="so", axis=1),
    ]
    numbers = {"sc": np.asarray([1, 1, 1.5, 2], np.float32), "pads": ints(0, 0, 1, 1, 0, 0, 1, 1),
               "st": ints(0, 0, 2), "en": ints(2, 3, 10), "ex": ints(2, 2, 18, 3)}  # fmt: skip
    losing = [
        node("LayerNormalization", ["x", "ls"], ["a"], name="ln"),
        node("Clip", ["a", "lo", "hi"], ["c"], name="cl"),
        node("GlobalAveragePool", ["c"], ["p"], name="gap"),
        node("Flatten", ["p"], ["f"], name="fl"),
        node("SoftmaxCrossEntropyLoss", ["f", "labels"], name="sce"),
    ]
    bounds = {"lo": np.float32(-1), "hi": np.float32(1), "ls": w(8)}
    inputs = [value("x", list(NCHW)), value("labels", [2], I64)]
    return [
        build(nodes, weights).SerializeToString(),
        build(moving, numbers, opset=11).SerializeToString(),
        build(losing, bounds, inputs).SerializeToString(),
    ]


def mutate(data: bytes, rng: np.random.Generator) -> bytes:
    """A few bytes flipped, set, dropped, doubled, or the end cut off."""
    raw = bytearray(data)
    for _ in range(int(rng.integers(1, 5))):
        place, kind = int(rng.integers(len(raw))), int(rng.integers(5))
        if kind == 0:
            raw[place] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            raw[place] = int(rng.choice([0, 1, 0x7F, 0x80, 0xFF]))
        elif kind == 2:
            del raw[place : place + int(rng.integers(1, 4))]
        elif kind == 3:
            raw[place:place] = raw[place : place + int(rng.integers(1, 12))]
        elif rng.random() < 0.2:
            del raw[place:]
        if not raw:
            return b""
    return bytes(raw)


def test_the_models_that_are_mutated_are_good() -> None:
    assert [read_model(m).graph.nodes[-1].op for m in small_models()] == [
        "softmax_cross_entropy"
    ] * 3


@pytest.mark.parametrize("which", range(3))
def test_mutated_models_are_read_or_refused(which: int) -> None:
    data = small_models()[which]
    refused: list[ReadError] = []
    for seed in range(250):
        rng = np.random.default_rng([which, seed])
        try:
            result = read_model(mutate(data, rng), ReadOptions(batch=None if seed % 2 else 3))
        except ReadError as error:
            refused.append(error)
        else:
            assert result.graph[result.loss].shape == (), seed
    assert len(refused) > 100
    assert all(error.problems for error in refused)


def test_check_reports_what_it_finds(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.onnx", tmp_path / "bad.onnx"
    good.write_bytes(conv_model().SerializeToString())
    bad.write_bytes(build([node("Frobnicate", ["x"])]).SerializeToString())
    report = check_model(good)
    assert report.ok
    assert report.parameter_elements == 4 * 3 * 3 * 3
    assert report.forward_macs == 2 * 4 * 6 * 6 * 3 * 3 * 3
    assert report.onnx_ops == {"Conv": 1}
    assert "can be compiled" in report.text()
    report = check_model(bad)
    assert not report.ok
    assert "culprit" in report.text()
    assert report.as_json()["problems"][0]["op"] == "Frobnicate"
