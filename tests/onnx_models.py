"""Small ONNX models for the tests, inputs for them, and what onnxruntime makes of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from ccnn.compiler.reader import ReadOptions, read_model
from ccnn.passes.interpret import interpret

F, I64 = TensorProto.FLOAT, TensorProto.INT64


def build(
    nodes: list[onnx.NodeProto], inputs: dict[str, tuple[Any, ...]], outputs: list[str],
    weights: dict[str, np.ndarray] | None = None, opset: int = 17, **kinds: int,
) -> onnx.ModelProto:  # fmt: skip
    """A model from nodes, input shapes and weights."""
    graph = helper.make_graph(
        nodes, "small",
        [helper.make_tensor_value_info(k, kinds.get(k, F), list(v)) for k, v in inputs.items()],
        [helper.make_empty_tensor_value_info(o) for o in outputs],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in (weights or {}).items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def one(
    op: str, *shapes: tuple[int, ...], weights: dict[str, np.ndarray] | None = None,
    opset: int = 17, outputs: int = 1, consts: dict[str, np.ndarray] | None = None, **attrs: Any,
) -> onnx.ModelProto:  # fmt: skip
    """A model of one node: data inputs x0, x1 …, then weights, then Constant nodes."""
    data = {f"x{k}": s for k, s in enumerate(shapes)}
    made = [
        helper.make_node("Constant", [], [k], value=numpy_helper.from_array(np.asarray(v)))
        for k, v in (consts or {}).items()
    ]
    names = [
        "" if n.startswith("absent") else n for n in (*data, *(weights or {}), *(consts or {}))
    ]
    made = [m for m in made if not m.output[0].startswith("absent")]
    outs = [f"y{k}" for k in range(outputs)]
    node = helper.make_node(op, names, outs, name="it", **attrs)
    return build([*made, node], data, outs, weights, opset)


def feeds(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    """Random values, none near a kink, for every input."""
    found = {}
    for k, value in enumerate(model.graph.input):
        shape = [d.dim_value for d in value.type.tensor_type.shape.dim]
        x = np.random.default_rng(k).uniform(0.1, 1.9, shape)
        sign = np.where(np.random.default_rng(k + 9).random(shape) < 0.5, -1, 1)
        found[value.name] = (x * sign).astype(np.float32)
    return found


def runtime(model: onnx.ModelProto, data: dict[str, np.ndarray]) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, data)


def results(
    model: onnx.ModelProto, data: dict[str, np.ndarray], **options: Any
) -> list[np.ndarray]:
    read = read_model(model, ReadOptions(loss="mse", **options))
    names = read.outputs
    target = np.zeros(read.graph[read.target].shape)
    values = interpret(read.graph, {**data, read.target: target}, keep=names)
    return [values[n] for n in names]


def r(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape) + 1).normal(size=shape).astype(np.float32)


def ints(*values: int) -> np.ndarray:
    return np.asarray(values, np.int64)


X, NCHW = (2, 6), (2, 3, 8, 7)
