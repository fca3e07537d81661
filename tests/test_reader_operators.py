"""Every operator that the reader takes, alone, against onnxruntime."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper
from onnx_models import NCHW, F, X, build, feeds, ints, one, r, results, runtime

W, W1 = r(4, 3, 3, 3), r(4, 3, 3)
RESIZED = {"absent0": np.float32(0), "s": np.asarray([1, 1, 2.5, 0.7], np.float32)}
DOUBLED = {"absent0": np.float32(0), "s": np.asarray([1, 1, 2, 3], np.float32)}
SIZES = {"absent0": np.float32(0), "absent1": np.float32(0), "s": ints(2, 3, 11, 5)}

CASES: dict[str, onnx.ModelProto] = {
    **{
        op: one(op, X)
        for op in ("Relu", "Sigmoid", "Tanh", "Softplus", "Softsign", "Erf", "Exp", "Neg", "Abs",
                   "Reciprocal", "Sign", "Floor", "Ceil", "LeakyRelu", "Elu", "Selu", "Celu",
                   "HardSigmoid", "HardSwish", "ThresholdedRelu", "Identity")
    },
    "LeakyRelu alpha": one("LeakyRelu", X, alpha=0.3),
    "ThresholdedRelu alpha": one("ThresholdedRelu", X, alpha=0.5),
    "Selu attributes": one("Selu", X, alpha=1.5, gamma=2.0),
    "Mish": one("Mish", X, opset=18),
    "Gelu": one("Gelu", X, opset=20),
    "Gelu tanh": one("Gelu", X, opset=20, approximate="tanh"),
    "PRelu": one("PRelu", NCHW, weights={"slope": r(3, 1, 1)}),
    "Clip inputs": one("Clip", X, consts={"lo": np.float32(-0.5), "hi": np.float32(1)}),
    "Clip upper only": one("Clip", X, consts={"absent0": np.float32(0), "hi": np.float32(1)}),
    "Clip attributes": one("Clip", X, opset=9, min=-0.25, max=0.75),
    "Add broadcast": one("Add", NCHW, (3, 1, 1)),
    "Sub": one("Sub", X, X),
    "Div": one("Div", X, X),
    "Mul weight": one("Mul", NCHW, weights={"g": r(3, 1, 1)}),
    "Pow": one("Pow", X, consts={"p": np.float32(2)}),
    "Min three": one("Min", X, X, X),
    "Max one": one("Max", X),
    "Sum three": one("Sum", X, X, X),
    "Mean three": one("Mean", X, X, X),
    "Where constant": build(
        [helper.make_node("Where", ["c", "x0", "x1"], ["y0"])], {"x0": X, "x1": X}, ["y0"],
        {"c": r(2, 6) > 0},
    ),
    **{
        f"Where {op}": build(
            [helper.make_node(op, ["x0", "x1"], ["c"]),
             helper.make_node("Where", ["c", "x0", "x1"], ["y0"])],
            {"x0": X, "x1": X}, ["y0"],
        )
        for op in ("Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Equal")
    },
    "Where of conditions": build(
        [helper.make_node("Greater", ["x0", "x1"], ["c"]),
         helper.make_node("Less", ["x0", "lo"], ["d"]),
         helper.make_node("Or", ["c", "d"], ["e"]),
         helper.make_node("Not", ["c"], ["n"]),
         helper.make_node("And", ["e", "n"], ["f"]),
         helper.make_node("Where", ["f", "x0", "x1"], ["y0"])],
        {"x0": X, "x1": X}, ["y0"], {"lo": np.float32(0.2)},
    ),
    "Conv": one("Conv", NCHW, weights={"w": W, "b": r(4)}),
    "Conv asymmetric": one(
        "Conv", NCHW, weights={"w": W}, pads=[0, 1, 2, 3], strides=[2, 1], dilations=[1, 2]
    ),
    "Conv group": one("Conv", (2, 6, 8, 8), weights={"w": r(4, 3, 3, 3)}, group=2),
    "Conv depthwise": one("Conv", NCHW, weights={"w": r(3, 1, 5, 3)}, group=3, pads=[2, 1, 2, 1]),
    "Conv 1-D": one("Conv", (2, 3, 9), weights={"w": W1, "b": r(4)}, pads=[2, 1], strides=[2]),
    "Conv same upper": one("Conv", NCHW, weights={"w": r(4, 3, 2, 4)}, auto_pad="SAME_UPPER"),
    "Conv same lower": one(
        "Conv", NCHW, weights={"w": r(4, 3, 2, 4)}, auto_pad="SAME_LOWER", strides=[2, 2]
    ),
    "Conv valid": one("Conv", NCHW, weights={"w": W}, auto_pad="VALID"),
    "ConvTranspose": one("ConvTranspose", NCHW, weights={"w": r(3, 4, 3, 3), "b": r(4)}),
    "ConvTranspose stride": one(
        "ConvTranspose", NCHW, weights={"w": r(3, 4, 3, 3)}, strides=[2, 3], pads=[1, 0, 1, 2],
        output_padding=[1, 0], dilations=[2, 1],
    ),
    "ConvTranspose shape": one(
        "ConvTranspose", NCHW, weights={"w": r(3, 4, 3, 3)}, strides=[2, 2], output_shape=[16, 14]
    ),
    "ConvTranspose 1-D": one("ConvTranspose", (2, 3, 5), weights={"w": r(3, 2, 3)}, strides=[2]),
    "ConvTranspose group": one(
        "ConvTranspose", (2, 4, 5, 5), weights={"w": r(4, 3, 3, 3)}, group=2
    ),
    "Gemm": one("Gemm", X, weights={"w": r(5, 6), "b": r(5)}, transB=1),
    "Gemm scaled": one("Gemm", (6, 2), weights={"w": r(6, 5), "b": r(2, 1)}, transA=1, alpha=0.5,
                       beta=2.0),
    "Gemm no bias": one("Gemm", X, weights={"w": r(6, 5)}),
    "MatMul": one("MatMul", (2, 3, 6), weights={"w": r(6, 5)}),
    "MatMul batches": one("MatMul", (2, 1, 3, 6), (4, 6, 5)),
    "MatMul vector": one("MatMul", (2, 3, 6), weights={"w": r(6)}),
    "MatMul vector left": one("MatMul", (6,), weights={"w": r(2, 6, 3)}),
    "GroupNormalization 21": one(
        "GroupNormalization", (2, 6, 4, 4), weights={"s": r(6), "b": r(6)}, num_groups=3, opset=21
    ),
    "InstanceNormalization": one("InstanceNormalization", NCHW, weights={"s": r(3), "b": r(3)}),
    "LayerNormalization": one("LayerNormalization", X, weights={"s": r(6), "b": r(6)}),
    "LayerNormalization axis": one(
        "LayerNormalization", (2, 3, 4), weights={"s": r(3, 4)}, axis=1, epsilon=0.01
    ),
    "LRN": one("LRN", (2, 7, 4, 4), size=5, alpha=0.01, beta=0.6, bias=2.0),
    "Softmax": one("Softmax", NCHW, axis=1),
    "Softmax default": one("Softmax", NCHW),
    "Softmax old": one("Softmax", (2, 3, 4), opset=11),
    "Softmax old 1x1": one("Softmax", (2, 5, 1, 1), opset=9),
    "LogSoftmax": one("LogSoftmax", (2, 5), axis=-1),
    "MaxPool": one("MaxPool", NCHW, kernel_shape=[3, 2], strides=[2, 1], pads=[1, 0, 1, 1]),
    "MaxPool ceil": one("MaxPool", NCHW, kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1),
    "MaxPool ceil pad": one(
        "MaxPool", (1, 2, 6, 6), kernel_shape=[2, 2], strides=[3, 3], pads=[1, 1, 1, 1], ceil_mode=1
    ),
    "MaxPool dilated": one("MaxPool", NCHW, kernel_shape=[3, 3], dilations=[2, 2]),
    "MaxPool same": one(
        "MaxPool", NCHW, kernel_shape=[2, 2], strides=[2, 2], auto_pad="SAME_UPPER"
    ),
    "MaxPool 1-D": one("MaxPool", (2, 3, 9), kernel_shape=[3], strides=[2]),
    "AveragePool": one("AveragePool", NCHW, kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
    "AveragePool include": one(
        "AveragePool", NCHW, kernel_shape=[3, 3], pads=[1, 0, 1, 2], count_include_pad=1
    ),
    "AveragePool ceil": one("AveragePool", NCHW, kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1),
    "AveragePool 3-D": one("AveragePool", (2, 1, 6, 4, 4), kernel_shape=[3, 1, 1]),
    "LpPool": one("LpPool", NCHW, kernel_shape=[2, 3], p=2),
    "LpPool 1": one("LpPool", NCHW, kernel_shape=[2, 3], p=1),
    "GlobalAveragePool": one("GlobalAveragePool", NCHW),
    "GlobalMaxPool": one("GlobalMaxPool", NCHW),
    "GlobalLpPool": one("GlobalLpPool", NCHW),
    **{
        f"{op} attribute": one(op, NCHW, axes=[-1, 2], keepdims=0, opset=11)
        for op in ("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2",
                   "ReduceSumSquare")
    },
    "ReduceMean input": one("ReduceMean", NCHW, consts={"a": ints(1)}, opset=18),
    "ReduceSum all": one("ReduceSum", NCHW, opset=13),
    "ReduceSum nothing": one("ReduceSum", NCHW, opset=13, noop_with_empty_axes=1),
    "Concat": one("Concat", NCHW, (2, 2, 8, 7), NCHW, axis=-3),
    "Split sizes": one("Split", NCHW, consts={"s": ints(3, 5)}, axis=2, outputs=2),
    "Split attribute": one("Split", X, axis=-1, split=[1, 2, 3], outputs=3, opset=11),
    "Split uneven": one("Split", (2, 7), axis=1, num_outputs=3, outputs=3, opset=18),
    "Split equal": one("Split", X, axis=1, outputs=2),
    "Slice": one(
        "Slice", NCHW,
        consts={"s": ints(1, -2), "e": ints(2**62, -(2**62)), "a": ints(1, -1), "t": ints(1, -2)},
    ),
    "Slice attributes": one("Slice", NCHW, opset=9, starts=[1, 0], ends=[100, -1], axes=[2, 3]),
    "Pad constant": one(
        "Pad", NCHW, consts={"p": ints(0, 0, 1, 2, 0, 0, 3, 0), "v": np.float32(2)}
    ),
    "Pad reflect": one("Pad", NCHW, consts={"p": ints(0, 0, 1, 2, 0, 0, 3, 0)}, mode="reflect"),
    "Pad edge": one("Pad", NCHW, consts={"p": ints(0, 0, 1, 2, 0, 0, 3, 0)}, mode="edge"),
    "Pad attributes": one("Pad", X, opset=9, pads=[0, 1, 0, 2], value=0.5),
    "Pad negative": one("Pad", X, consts={"p": ints(0, -1, 0, 2)}),
    "Pad axes": one(
        "Pad", NCHW, consts={"p": ints(1, 2), "absent0": np.float32(0), "a": ints(-1)}, opset=18
    ),
    "Flatten": one("Flatten", NCHW, axis=2),
    "Flatten all": one("Flatten", NCHW, axis=0),
    "Reshape": one("Reshape", NCHW, consts={"s": ints(0, -1, 7)}),
    "Reshape allowzero": one("Reshape", NCHW, consts={"s": ints(6, 56)}, allowzero=1),
    "Transpose": one("Transpose", NCHW, perm=[0, 2, 3, 1]),
    "Transpose default": one("Transpose", NCHW),
    "Squeeze": one("Squeeze", (2, 1, 3, 1), consts={"a": ints(-1)}),
    "Squeeze all": one("Squeeze", (2, 1, 3, 1)),
    "Unsqueeze": one("Unsqueeze", X, consts={"a": ints(0, -1)}),
    "Unsqueeze attribute": one("Unsqueeze", X, axes=[1], opset=11),
    "Expand": one("Expand", (2, 1, 3), consts={"s": ints(4, 1)}),
    "Tile": one("Tile", (2, 3), consts={"s": ints(2, 3)}),
    "Gather list": one("Gather", NCHW, consts={"i": ints(2, 0, -1)}, axis=1),
    "Gather scalar": one("Gather", NCHW, consts={"i": np.int64(-1)}, axis=2),
    "Gather table": one("Gather", NCHW, consts={"i": ints(0, 1, 2, 1).reshape(2, 2)}, axis=1),
    "DepthToSpace": one("DepthToSpace", (2, 8, 3, 2), blocksize=2),
    "DepthToSpace CRD": one("DepthToSpace", (2, 8, 3, 2), blocksize=2, mode="CRD"),
    "SpaceToDepth": one("SpaceToDepth", (2, 2, 6, 4), blocksize=2),
    "Cast": one("Cast", X, to=F),
    "Dropout": one("Dropout", X),
    "Upsample 9": one("Upsample", NCHW, weights={"s": np.asarray([1, 1, 2, 2], np.float32)},
                      opset=9),
    "Upsample 7": one("Upsample", NCHW, scales=[1.0, 1.0, 2.0, 3.0], mode="nearest", opset=7),
    "Resize 10": one("Resize", NCHW, consts={"s": DOUBLED["s"]}, opset=10, mode="linear"),
    "Resize doubled": one("Resize", NCHW, consts=DOUBLED),
    "Resize sizes": one("Resize", NCHW, consts=SIZES, mode="linear"),
    "Resize axes": one(
        "Resize", NCHW, consts={**SIZES, "s": ints(11, 5)}, axes=[2, 3], mode="linear", opset=18
    ),
    **{
        f"Resize {mode} {way}": one(
            "Resize", NCHW, consts=RESIZED, mode=mode, coordinate_transformation_mode=way
        )
        for mode in ("nearest", "linear", "cubic")
        for way in ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric")
    },
    **{
        f"Resize {way}": one(
            "Resize", NCHW, consts=RESIZED, nearest_mode=way,
            coordinate_transformation_mode="asymmetric",
        )
        for way in ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")
    },
    "Resize cubic outside": one(
        "Resize", NCHW, consts=RESIZED, mode="cubic", exclude_outside=1, cubic_coeff_a=-0.5
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_operator(name: str) -> None:
    model = CASES[name]
    data = feeds(model)
    for mine, theirs in zip(results(model, data), runtime(model, data), strict=True):
        assert mine.shape == theirs.shape
        np.testing.assert_allclose(mine, theirs, rtol=3e-5, atol=3e-6)


def test_group_norm_of_operator_set_18_scales_groups() -> None:
    scale, bias = r(3), r(3)
    model = one("GroupNormalization", (2, 6, 4, 4), weights={"s": scale, "b": bias}, num_groups=3,
                opset=18)  # fmt: skip
    data = feeds(model)
    groups = data["x0"].astype(np.float64).reshape(2, 3, -1)
    normal = (groups - groups.mean(2, keepdims=True)) / np.sqrt(groups.var(2, keepdims=True) + 1e-5)
    expected = normal * scale[:, None] + bias[:, None]
    np.testing.assert_allclose(results(model, data)[0].reshape(2, 3, -1), expected, rtol=1e-6)


def test_swish_of_operator_set_24() -> None:
    model = one("Swish", X, opset=24, alpha=0.5)
    data = feeds(model)
    x = data["x0"].astype(np.float64)
    np.testing.assert_allclose(results(model, data)[0], x / (1 + np.exp(-0.5 * x)), rtol=1e-6)


def test_sequences() -> None:
    nodes = [
        helper.make_node("SplitToSequence", ["x", "n"], ["s"], axis=1),
        helper.make_node("SequenceAt", ["s", "k"], ["y"]),
        helper.make_node("ConcatFromSequence", ["s"], ["z"], axis=1),
        helper.make_node("Relu", ["z"], ["v"]),
    ]
    weights = {"n": np.int64(4), "k": np.int64(-1)}
    model = build(nodes, {"x": X}, ["y", "v"], weights)
    data = feeds(model)
    mine = results(model, data)
    np.testing.assert_array_equal(mine[0], data["x"][:, 4:])
    np.testing.assert_array_equal(mine[1], np.maximum(data["x"], 0))
