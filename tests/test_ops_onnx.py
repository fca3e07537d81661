"""The references of the ops against a third opinion: onnxruntime, in float32."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from ccnn.passes.graph import Builder
from ccnn.passes.interpret import interpret

onnxruntime = pytest.importorskip("onnxruntime")

CONV = {"strides": (2, 1), "pads": (1, 0, 2, 1), "dilations": (1, 2), "group": 2}
POOL = {"kernel_shape": (3, 2), "strides": (2, 1), "pads": (1, 0, 1, 1)}
OURS_POOL = {"kernel": (3, 2), "strides": (2, 1), "pads": (1, 0, 1, 1), "dilations": (1, 1)}
X = (2, 4, 7, 6)

CASES: tuple[tuple[str, tuple, dict[str, Any], str, dict[str, Any]], ...] = (
    ("conv", (X, (6, 2, 3, 2), (6,)), CONV, "Conv", CONV),
    (
        "conv_transpose",
        (X, (4, 3, 3, 2), (6,)),
        {**CONV, "output_padding": (1, 0)},
        "ConvTranspose",
        {**CONV, "output_padding": (1, 0)},
    ),
    ("max_pool", (X,), OURS_POOL, "MaxPool", POOL),
    *(
        (
            "avg_pool",
            (X,),
            {**OURS_POOL, "count_include_pad": bool(c)},
            "AveragePool",
            {**POOL, "count_include_pad": c},
        )
        for c in (0, 1)
    ),
    *(
        (
            "lrn",
            ((2, 7, 3, 3),),
            {"size": size, "alpha": 0.2, "beta": 0.6, "bias": 1.5},
            "LRN",
            {"size": size, "alpha": 0.2, "beta": 0.6, "bias": 1.5},
        )
        for size in (3, 5)
    ),
    (
        "instance_norm",
        (X, (4,), (4,)),
        {"epsilon": 0.01},
        "InstanceNormalization",
        {"epsilon": 0.01},
    ),
    (
        "layer_norm",
        (X, (7, 6), (7, 6)),
        {"axis": 2, "epsilon": 0.01},
        "LayerNormalization",
        {"axis": 2, "epsilon": 0.01},
    ),
    ("softmax", (X,), {"axis": 1}, "Softmax", {"axis": 1}),
    ("log_softmax", (X,), {"axis": 2}, "LogSoftmax", {"axis": 2}),
    ("prelu", (X, (4, 1, 1)), {}, "PRelu", {}),
    ("celu", (X,), {"alpha": 0.7}, "Celu", {"alpha": 0.7}),
    ("selu", (X,), {}, "Selu", {}),
    ("elu", (X,), {"alpha": 0.7}, "Elu", {"alpha": 0.7}),
    ("hard_sigmoid", (X,), {"alpha": 0.3, "beta": 0.4}, "HardSigmoid", {"alpha": 0.3, "beta": 0.4}),
    ("hard_swish", (X,), {}, "HardSwish", {}),
    ("mish", (X,), {}, "Mish", {}),
    ("softplus", (X,), {}, "Softplus", {}),
    ("softsign", (X,), {}, "Softsign", {}),
    ("erf", (X,), {}, "Erf", {}),
    *(("gelu", (X,), {"approximate": a}, "Gelu", {"approximate": a}) for a in ("none", "tanh")),
)


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c[0]}-{sorted(c[4].items())}")
def test_agrees_with_onnxruntime(case):
    op, shapes, attrs, onnx_op, onnx_attrs = case
    rng = np.random.default_rng(4)
    values = {f"x{k}": rng.standard_normal(s).astype(np.float32) for k, s in enumerate(shapes)}
    b = Builder()
    y = b.emit(op, [b.input(n, v.shape) for n, v in values.items()], **attrs)
    ours = interpret(b.build([y]), values)[y]
    node = helper.make_node(onnx_op, list(values), ["y"], **onnx_attrs)
    inputs = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, v.shape) for n, v in values.items()
    ]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, ours.shape)
    graph = helper.make_graph([node], "g", inputs, [output])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    model.ir_version = min(model.ir_version, 10)
    onnx.checker.check_model(model)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    theirs = session.run(None, values)[0]
    assert theirs.shape == ours.shape
    np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=2e-5)


def test_group_norm_agrees_with_its_definition_by_instance_norm():
    rng = np.random.default_rng(4)
    x, scale, bias = rng.standard_normal((2, 6, 5)), rng.standard_normal(6), rng.standard_normal(6)
    b = Builder()
    names = [b.input(n, v.shape) for n, v in (("x", x), ("s", scale), ("o", bias))]
    y = b.emit("group_norm", names, groups=3, epsilon=0.01)
    ours = interpret(b.build([y]), {"x": x, "s": scale, "o": bias})[y]
    parts = x.reshape(2, 3, 10)
    unit = (parts - parts.mean(2, keepdims=True)) / np.sqrt(parts.var(2, keepdims=True) + 0.01)
    wanted = unit.reshape(2, 6, 5) * scale[:, None] + bias[:, None]
    np.testing.assert_allclose(ours, wanted, rtol=1e-12)
