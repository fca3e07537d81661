"""From a file to checked, ordered, needed nodes: everything before an operator's meaning counts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnx.inliner
from google.protobuf.message import DecodeError
from onnx import ModelProto, TensorProto

from ccnn.compiler.reader.onnx_node import OnnxNode, read_node
from ccnn.compiler.reader.problems import Findings, ReadError, Refusal
from ccnn.compiler.reader.tensors import Folder, utf8

OLDEST_OPSET = 7
SELECTS = ("NonMaxSuppression", "TopK", "ArgMax", "ArgMin", "NonZero", "RoiAlign", "MaxRoiPool")
"""Operators that select by data, which has no fixed schedule."""
_EXPORT = "torch.onnx.export(model, x, 'model.onnx', opset_version=17, dynamo=False)"
_MAGIC = (
    (b"PK\x03\x04", "a zip archive (a PyTorch checkpoint?)", f"export it: {_EXPORT}"),
    (b"\x80\x02", "a Python pickle (a PyTorch checkpoint?)", f"export it: {_EXPORT}"),
    (b"version https://git-lfs", "a Git LFS pointer", "fetch the real file: git lfs pull"),
    (b"<!DOCTYPE", "a web page", "download the model itself, not the page about it"),
    (b"<html", "a web page", "download the model itself, not the page about it"),
    (b"\x1f\x8b", "a gzip archive", "unpack it first"),
    (b"\x89HDF", "an HDF5 file (a Keras model?)", "convert it with tf2onnx"),
)


@dataclass(frozen=True)
class GraphInput:
    """A graph input: element type and dimensions (a name for a symbolic one, None if unsaid)."""

    name: str
    elem_type: int
    dims: tuple[int | str | None, ...] | None


@dataclass(frozen=True)
class Source:
    """An ONNX model as checked plain values; `nodes` are in execution order and all needed."""

    name: str
    producer: str
    ir_version: int
    opset: int
    nodes: tuple[OnnxNode, ...]
    initializers: Mapping[str, TensorProto]
    inputs: tuple[GraphInput, ...]
    outputs: tuple[str, ...]
    folder: Folder | None
    total_nodes: int
    buffers: frozenset[str] = frozenset()
    """Initializers that the file says are no parameters."""


def load_source(model: str | Path | bytes | ModelProto, findings: Findings) -> Source:
    """Read and check a model's structure; raises ReadError when it has none to speak of."""
    label, folder = "the model", None
    if isinstance(model, str | Path):
        path = Path(model)
        label, folder = path.name, Folder(path.parent)
        model = _read_file(path)
    proto = _parse(model, label) if isinstance(model, bytes) else model
    try:
        proto = _inline(proto, findings, label)
        source = _structure(proto, folder, findings)
    except Refusal as refusal:
        findings.error(refusal.why, refusal.fix)
        raise ReadError(findings.problems, label) from refusal
    findings.stop_if_failed(label)
    return source


def _stop(label: str, why: str, fix: str) -> ReadError:
    findings = Findings()
    findings.error(why, fix, where=label)
    return ReadError(findings.problems, label)


def _read_file(path: Path) -> bytes:
    try:
        if path.is_dir():
            raise _stop(str(path), "it is a folder", "give the .onnx file inside it")
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise _stop(str(path), "there is no such file", "check the path") from error
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise _stop(str(path), f"it cannot be opened ({reason})", "check the path") from error
    if not data:
        raise _stop(path.name, "the file is empty", "export or copy it again")
    return data


def _parse(data: bytes, label: str) -> ModelProto:
    for magic, what, fix in _MAGIC:
        if data.startswith(magic):
            raise _stop(label, f"this is {what}, not an ONNX model", fix)
    try:
        return ModelProto.FromString(data)
    except DecodeError as error:
        raise _stop(
            label, "this is not an ONNX model, or it is truncated or damaged",
            f"export or copy it again; from PyTorch: {_EXPORT}",
        ) from error  # fmt: skip


def _inline(proto: ModelProto, findings: Findings, label: str) -> ModelProto:
    if not proto.functions:
        return proto
    calls = {(f.domain, f.name): [(n.domain, n.op_type) for n in f.node] for f in proto.functions}
    if _recursive(calls):
        raise _stop(label, "a model-local function calls itself", "export the model again")
    try:
        inlined = onnx.inliner.inline_local_functions(proto)
    except (RuntimeError, ValueError, TypeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise _stop(
            label, f"its model-local functions cannot be inlined ({reason})",
            f"export without functions: {_EXPORT}",
        ) from error  # fmt: skip
    findings.note(f"{len(proto.functions)} model-local functions were inlined")
    return inlined


def _recursive(calls: Mapping[tuple[str, str], list[tuple[str, str]]]) -> bool:
    """True when the call graph has a cycle (repeatedly dropping functions that call none)."""
    left = {k: {c for c in v if c in calls} for k, v in calls.items()}
    while True:
        leaves = {k for k, v in left.items() if not v}
        if not leaves:
            return bool(left)
        left = {k: v - leaves for k, v in left.items() if k not in leaves}


def _structure(proto: ModelProto, folder: Folder | None, findings: Findings) -> Source:
    graph = proto.graph
    opsets = {("" if o.domain == "ai.onnx" else o.domain): o.version for o in proto.opset_import}
    _check_opset(opsets.get("", 0), findings)
    if not graph.node:
        findings.error("it has no nodes", "the file is damaged or holds no model: export it again")
    if not graph.output:
        findings.error(
            "it has no outputs", "the file is damaged or holds no model: export it again"
        )
    if graph.sparse_initializer:
        findings.error("it has sparse initializers", "store its weights dense")
    if proto.training_info:
        findings.note("its training_info is ignored: ccnn derives the training step itself")
    initializers = _initializers(graph, findings)
    inputs = _inputs(graph, initializers, findings)
    nodes = []
    for k, node in enumerate(graph.node):
        try:
            nodes.append(read_node(node, opsets, k))
        except Refusal as r:
            name = node.name if isinstance(node.name, str) else ""
            findings.error(r.why, r.fix, node=name or f"node {k}", op=str(node.op_type))
    outputs = tuple(utf8(o.name) for o in graph.output)
    if not findings.failed:
        _check_names(nodes, initializers, inputs, outputs, findings)
    ordered = [] if findings.failed else _in_order(nodes, findings)
    outputs = _without_selections(ordered, [i.name for i in inputs], outputs, findings)
    needed = _needed(ordered, outputs)
    used = {name for node in needed for name in node.inputs} | set(outputs)
    return Source(
        utf8(graph.name) or "model",
        f"{utf8(proto.producer_name)} {utf8(proto.producer_version)}".strip(),
        proto.ir_version, opsets.get("", 0), tuple(needed),
        {k: v for k, v in initializers.items() if k in used},
        tuple(i for i in inputs if i.name in used), outputs, folder, len(nodes),
        _buffers(graph),
    )  # fmt: skip


def _buffers(graph: onnx.GraphProto) -> frozenset[str]:
    """What torch.export knows as a buffer or a constant; its exporter says so at each value."""
    return frozenset(
        utf8(v.name)
        for v in graph.value_info
        for p in v.metadata_props
        if p.key.endswith("InputSpec.kind") and p.value in ("BUFFER", "CONSTANT_TENSOR")
    )


def _check_opset(opset: int, findings: Findings) -> None:
    newest = onnx.defs.onnx_opset_version()
    fix = "export it again with opset_version=17 (any from 7 to the newest works)"
    if opset <= 0:
        findings.error("it does not say which ONNX operator set it uses", fix)
    elif opset < OLDEST_OPSET:
        findings.error(f"its operator set {opset} is older than {OLDEST_OPSET}", fix)
    elif opset > newest:
        findings.error(
            f"its operator set {opset} is newer than {newest}, the newest this onnx package knows",
            "upgrade the onnx package, or " + fix,
        )


def _initializers(graph: onnx.GraphProto, findings: Findings) -> dict[str, TensorProto]:
    found: dict[str, TensorProto] = {}
    for k, tensor in enumerate(graph.initializer):
        if not utf8(tensor.name):
            findings.error(f"initializer {k} has no name", "export the model again")
        elif tensor.name in found:
            findings.error(f"two initializers are called '{tensor.name}'", "export the model again")
        found[tensor.name] = tensor
    return found


def _inputs(
    graph: onnx.GraphProto, initializers: Mapping[str, TensorProto], findings: Findings
) -> list[GraphInput]:
    found: dict[str, GraphInput] = {}
    for value in graph.input:
        if utf8(value.name) in initializers:
            continue
        if not value.name:
            findings.error("a graph input has no name", "export the model again")
        if value.name in found:
            findings.error(f"two graph inputs are called '{value.name}'", "export the model again")
        kind = value.type.WhichOneof("value")
        if kind != "tensor_type":
            findings.error(
                f"graph input '{value.name}' is no tensor ({kind or 'its type is missing'})",
                "export a model that takes tensors only",
            )
            continue
        tensor = value.type.tensor_type
        dims = tuple(_dim(d) for d in tensor.shape.dim) if tensor.HasField("shape") else None
        found[value.name] = GraphInput(value.name, tensor.elem_type, dims)
    return list(found.values())


def _dim(dim: onnx.TensorShapeProto.Dimension) -> int | str | None:
    if dim.HasField("dim_value"):
        return dim.dim_value
    return utf8(dim.dim_param) or None


def _check_names(
    nodes: Iterable[OnnxNode], initializers: Mapping[str, TensorProto],
    inputs: Iterable[GraphInput], outputs: Iterable[str], findings: Findings,
) -> None:  # fmt: skip
    """Every tensor is made once and every tensor that is read is made."""
    made = {**dict.fromkeys(initializers, "an initializer"), **{i.name: "an input" for i in inputs}}
    nodes = list(nodes)
    for node in nodes:
        for name in (o for o in node.outputs if o):
            if name in made:
                findings.error(
                    f"it writes '{name}', which is already {made[name]}",
                    "tensor names must be unique: export it again", node=node.name, op=node.op,
                )  # fmt: skip
            made[name] = f"written by '{node.name}'"
    for node in nodes:
        for name in (i for i in node.inputs if i and i not in made):
            findings.error(
                f"it reads '{name}', which nothing provides",
                "an initializer or node is missing: export it again with export_params=True",
                node=node.name, op=node.op,
            )  # fmt: skip
    for name in outputs:
        if name not in made:
            findings.error(f"the output '{name}' is not computed by any node", "export it again")


def _in_order(nodes: list[OnnxNode], findings: Findings) -> list[OnnxNode]:
    """The nodes sorted so that each comes after what it reads; order kept where it can be."""
    producer = {o: k for k, n in enumerate(nodes) for o in n.outputs if o}
    waits = [{producer[i] for i in n.inputs if i in producer} for n in nodes]
    users: dict[int, list[int]] = {}
    for k, needs in enumerate(waits):
        for p in needs:
            users.setdefault(p, []).append(k)
    if all(p < k for k, needs in enumerate(waits) for p in needs):
        return nodes
    findings.note("its nodes are not in execution order; they were sorted")
    left = [len(needs) for needs in waits]
    ready = [k for k in range(len(nodes)) if not left[k]]
    order: list[int] = []
    while len(order) < len(ready):
        order.append(k := ready[len(order)])
        for user in users.get(k, ()):
            left[user] -= 1
            if not left[user]:
                ready.append(user)
    if len(order) < len(nodes):
        names = [nodes[k].name for k in range(len(nodes)) if left[k]]
        findings.error(
            f"these nodes wait for each other in a circle: {', '.join(names[:5])}"
            + (f" and {len(names) - 5} more" if len(names) > 5 else ""),
            "a graph must be acyclic: export the model again",
        )
    return [nodes[k] for k in order]


def _without_selections(
    nodes: list[OnnxNode], inputs: Iterable[str], outputs: tuple[str, ...], findings: Findings
) -> tuple[str, ...]:
    """The outputs that are not selected by data, as a class is from its scores.

    All where there are no others: the selection is refused later, as what it is.
    """
    data, chosen = set(inputs), dict[str, str]()
    for node in nodes:
        if node.op in ("Shape", "Size") or data.isdisjoint(node.inputs):
            continue
        data.update(node.outputs)
        by = node.op if node.op in SELECTS else ""
        by = by or next((chosen[i] for i in node.inputs if i in chosen), "")
        chosen.update((o, by) for o in node.outputs if o and by)
    kept = tuple(o for o in outputs if o not in chosen)
    for name in (o for o in outputs if kept and o in chosen):
        op = chosen[name]
        findings.note(f"the output '{name}' is left out: {op} selects by data and does not train")
    return kept or outputs


def _needed(nodes: list[OnnxNode], outputs: Iterable[str]) -> list[OnnxNode]:
    wanted = set(outputs)
    kept = []
    for node in reversed(nodes):
        if any(o in wanted for o in node.outputs if o):
            kept.append(node)
            wanted.update(node.inputs)
    return kept[::-1]
