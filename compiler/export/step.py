"""From a graph to an ONNX model: one rule for each primitive, and the model around them.

What a user sees of the model are its inputs (the model's own, the target, parameters and state,
the last two with their initial values as defaults) and its outputs, named as `ccnn run` names
results: loss, output, grad/NAME, w1/NAME (parameters after the step), bn1/NAME (running
statistics) and state1/NAME (the optimizer's).  Feeding w1/NAME, bn1/NAME and state1/NAME back as
NAME gives the next step; the metadata entry `ccnn.feedback` holds these pairs as JSON.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto, helper

from ccnn.compiler.driver import CompileOptions
from ccnn.compiler.export.array import (
    write_conv,
    write_conv_dw,
    write_conv_dx,
    write_matmul,
)
from ccnn.compiler.export.movement import (
    write_concat,
    write_expand,
    write_pad,
    write_reshape,
    write_slice,
    write_transpose,
)
from ccnn.compiler.export.vector import write_map, write_moments, write_random, write_reduce
from ccnn.compiler.export.windows import (
    write_window_max,
    write_window_max_grad,
    write_window_sum,
    write_window_sum_grad,
)
from ccnn.compiler.export.writer import INT64, TYPES, ExportError, Writer, free_name
from ccnn.compiler.reader import ReadOptions, ReadResult, read_model
from ccnn.passes.autodiff import differentiate
from ccnn.passes.expand import expand
from ccnn.passes.graph import Graph, Node
from ccnn.passes.pipeline import DEFAULT, run_pipeline

OPSET, IR_VERSION = 21, 10
LARGEST = 2**31 - 2**20
"""Bytes of initial values that fit a model: protobuf ends at 2 GiB, and the graph needs some."""

RULES: dict[str, Callable[[Writer, Node], list[str]]] = {
    "conv": write_conv,
    "conv_dx": write_conv_dx,
    "conv_dw": write_conv_dw,
    "matmul": write_matmul,
    "map": write_map,
    "reduce": write_reduce,
    "moments": write_moments,
    "random": write_random,
    "window_sum": write_window_sum,
    "window_sum_grad": write_window_sum_grad,
    "window_max": write_window_max,
    "window_max_grad": write_window_max_grad,
    "reshape": write_reshape,
    "transpose": write_transpose,
    "expand": write_expand,
    "concat": write_concat,
    "slice": write_slice,
    "pad": write_pad,
}
"""How each primitive is written; every other op is expanded into these first."""


def export_model(
    model: str | Path | Any, options: CompileOptions | None = None, *, lowered: bool = False
) -> ModelProto:
    """The training step of an ONNX file (or ModelProto) as an ONNX model.

    The step as it is differentiated, or, when `lowered`, after the passes that compiling runs.
    Raises ReadError for a model that is not accepted, ExportError for a step too large.
    """
    options = options or CompileOptions(dtype="float32")
    return export_step(*training_step(model, options), options.dtype, lowered=lowered)


def training_step(model: str | Path | Any, o: CompileOptions) -> tuple[ReadResult, Graph]:
    """What was read, and its step; no machine is involved. Raises ReadError and GraphError."""
    read = read_model(
        model,
        ReadOptions(
            batch=o.batch, loss=o.loss, seed=o.seed, dropout=o.dropout, dropout_seed=o.seed
        ),
    )
    step = differentiate(
        read.graph,
        read.loss,
        input_gradients=read.inputs[:1] if o.input_gradient else (),
        frozen=o.freeze,
        optimizer=o.optimizer,
    )
    return read, step


def export_step(read: ReadResult, step: Graph, dtype: str, *, lowered: bool = False) -> ModelProto:
    """A differentiated graph as an ONNX model, its results named as `ccnn run` names them."""
    if lowered:
        step = run_pipeline(step, DEFAULT)
    results, feedback = results_of(step, read)
    return export_graph(step, results, dtype=dtype, feedback=feedback)


def results_of(step: Graph, read: ReadResult) -> tuple[dict[str, str], dict[str, str]]:
    """What a step gives: result name to tensor; and result name to the tensor it replaces."""
    results = {"loss": read.loss}
    for k, name in enumerate(n for n in read.outputs if n != read.loss):
        results[f"output/{name}" if k else "output"] = name
    for name, gradient in step.gradients.items():
        role = step[name].role
        results[f"grad/{name}" if role == "parameter" else "grad_input"] = gradient
    feedback = {}
    for name, new in step.updates.items():
        own = "bn1" if name in read.graph.tensors else "state1"
        key = f"{'w1' if step[name].role == 'parameter' else own}/{name}"
        results[key], feedback[key] = new, name
    return results, feedback


def export_graph(
    graph: Graph,
    results: Mapping[str, str],
    *,
    dtype: str = "float32",
    feedback: Mapping[str, str] | None = None,
) -> ModelProto:
    """Any graph as an ONNX model of operator set 21.

    `results` names its outputs and the tensors they hold, `feedback` says which outputs replace
    which inputs in the next step.  Raises ExportError for an op that has no ONNX form and
    for more initial values than a model can hold.
    """
    graph = expand(graph)
    names, outputs = _names(graph, results)
    w = Writer(graph, names, dtype)
    _write_values(w)
    for node in graph.nodes:
        if node.op not in RULES:
            raise ExportError(
                f"node '{node.name}': the primitive '{node.op}' has no ONNX form; give the op an "
                "`expand` into other primitives"
            )
        start = w.begin(node)
        w.end(node, start, RULES[node.op](w, node))
    back = {outputs[k]: names[v] for k, v in (feedback or {}).items()}
    return _assembled(w, {outputs[k]: t for k, t in results.items()}, back)


def _names(graph: Graph, results: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """Tensor to its ONNX name, and result to the name of its output.

    Inputs, parameters and state keep their names; a result whose name one of them has gets a
    number behind it.
    """
    names = {t.name: t.name for t in graph.tensors.values() if _public(t.role)}
    taken, outputs = set(names.values()), {}
    for key, tensor in results.items():
        outputs[key] = free_name(key, taken)
        taken.add(outputs[key])
        if graph[tensor].role == "value":
            names.setdefault(tensor, outputs[key])
    for tensor in graph.tensors:
        if tensor not in names:
            names[tensor] = free_name(tensor, taken)
            taken.add(names[tensor])
    return names, outputs


def _public(role: str) -> bool:
    return role in ("input", "parameter", "state")


def _write_values(w: Writer) -> None:
    """Initial values of parameters and state, and constants, as initializers."""
    tensors = [t for t in w.graph.tensors.values() if t.role not in ("input", "value")]
    width = {INT64: 8, TYPES["float64"][0]: 8, TYPES["float32"][0]: 4}
    size = sum(t.size * width.get(w.type_of(t), 2) for t in tensors)
    if size > LARGEST:
        raise ExportError(
            f"parameters and state take {size / 2**30:.1f} GiB, an ONNX file holds 2 GiB; a 16-bit "
            "--dtype halves the parameters, and sgd without --momentum has no state"
        )
    for tensor in tensors:
        if tensor.name in w.graph.data:
            value = np.asarray(w.graph.data[tensor.name])
            w.declare(w.named(tensor.name), value, w.type_of(tensor))
        elif tensor.role == "constant":
            raise ExportError(f"the constant '{tensor.name}' has no value")


def _assembled(w: Writer, outputs: Mapping[str, str], feedback: dict[str, str]) -> ModelProto:
    """The model: copies for results that share a tensor, then inputs, outputs and metadata."""
    nodes = [record.proto() for record in w.records]
    for output, tensor in outputs.items():
        if w.named(tensor) != output:
            nodes.append(helper.make_node("Identity", [w.named(tensor)], [output], output))
    public = [t for t in w.graph.tensors.values() if _public(t.role)]
    inputs = [_info(w, t.name, t.name) for t in public]
    results = [_info(w, output, tensor) for output, tensor in outputs.items()]
    if w.stepped:
        one, after = w.constant(1, INT64), w.fresh(f"state1/{w.stepped}")
        nodes.append(helper.make_node("Add", [w.stepped, one], [after], after))
        inputs.append(helper.make_tensor_value_info(w.stepped, INT64, ()))
        results.append(helper.make_tensor_value_info(after, INT64, ()))
        feedback = {**feedback, after: w.stepped}
    known = {v.name for v in (*inputs, *results)}
    made = [t.name for t in w.graph.of_role("value") if w.named(t.name) not in known]
    graph = helper.make_graph(
        nodes,
        w.graph.name or "step",
        inputs,
        results,
        list(w.initializers.values()),
        value_info=[_info(w, w.named(t), t) for t in made],
    )
    model = helper.make_model(
        graph,
        producer_name="ccnn",
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
    )
    helper.set_model_props(model, {"ccnn.feedback": json.dumps(feedback)})
    return model


def _info(w: Writer, name: str, tensor: str) -> Any:
    t = w.graph[tensor]
    return helper.make_tensor_value_info(name, w.type_of(t), t.shape)


def serialized(model: ModelProto) -> bytes:
    """The bytes of a model file; the same model gives the same bytes."""
    return model.SerializeToString(deterministic=True)
