"""The ONNX graph while it is written: nodes, initializers, and what type each tensor has.

Nodes stay plain records until the end, so that the results of a rule can be given the names the
graph knows them by.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np
from onnx import NodeProto, TensorProto, helper

from ccnn.passes.graph import Graph, Node, Tensor

FLOAT, DOUBLE, BOOL = TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.BOOL
INT64, UINT64, UINT8 = TensorProto.INT64, TensorProto.UINT64, TensorProto.UINT8

TYPES: dict[str, tuple[int, int]] = {
    "float64": (DOUBLE, DOUBLE),
    "float32": (FLOAT, FLOAT),
    "float16": (TensorProto.FLOAT16, FLOAT),
    "bfloat16": (TensorProto.BFLOAT16, FLOAT),
}
"""Precision of the step: the ONNX types of 'float' and 'accum'."""

_NUMPY: dict[int, Any] = {
    DOUBLE: np.float64,
    FLOAT: np.float32,
    TensorProto.FLOAT16: np.float16,
    TensorProto.BFLOAT16: ml_dtypes.bfloat16,
    INT64: np.int64,
    UINT64: np.uint64,
    UINT8: np.uint8,
    BOOL: np.bool_,
}


class ExportError(Exception):
    """A step that cannot be written as ONNX, and why."""


@dataclass
class Record:
    """One ONNX node to be."""

    kind: str
    inputs: list[str]
    outputs: list[str]
    attrs: dict[str, Any]
    name: str = ""
    facts: dict[str, str] = field(default_factory=dict)

    def proto(self) -> NodeProto:
        """The node as ONNX spells it; `facts` become its metadata."""
        node = helper.make_node(self.kind, self.inputs, self.outputs, self.name, **self.attrs)
        for key, value in self.facts.items():
            node.metadata_props.add(key=key, value=value)
        return node


class Writer:
    """Collects the nodes of one graph; `names` says what each tensor is called in ONNX."""

    def __init__(self, graph: Graph, names: Mapping[str, str], dtype: str) -> None:
        self.graph = graph
        self.float, self.accum = TYPES[dtype]
        self.records: list[Record] = []
        self.initializers: dict[str, TensorProto] = {}
        self.stepped = ""
        """The input that counts training steps; '' while no node needs it."""
        self._names = names
        self._taken = set(names.values())
        self._types = {names[t.name]: self.type_of(t) for t in graph.tensors.values()}
        self._constants: dict[tuple[int, tuple[int, ...], bytes], str] = {}
        self._stem = ""

    def type_of(self, tensor: Tensor) -> int:
        """The ONNX type of a tensor of the graph."""
        return {"float": self.float, "accum": self.accum, "index": INT64}.get(tensor.dtype, UINT8)

    def shape(self, tensor: str) -> tuple[int, ...]:
        """Shape of a tensor of the graph."""
        return self.graph[tensor].shape

    def named(self, tensor: str) -> str:
        """What a tensor of the graph is called in ONNX; '' stays ''."""
        return self._names[tensor] if tensor else ""

    def fresh(self, stem: str) -> str:
        """A name that nothing has yet."""
        name = free_name(stem, self._taken)
        self._taken.add(name)
        return name

    def type(self, name: str) -> int:
        """The ONNX type of anything written so far."""
        return self._types[name]

    def begin(self, node: Node) -> int:
        """Name what follows after `node`; gives the place where its records start."""
        self._stem = node.name
        return len(self.records)

    def emit(self, kind: str, inputs: Sequence[str], *, to: int | None = None, **attrs: Any) -> str:
        """Append a node with one result, of type `to` (that of its first input if not given)."""
        result = self.fresh(f"{self._stem}/{kind.lower()}")
        self._types[result] = self._types[inputs[0]] if to is None else to
        self.records.append(Record(kind, list(inputs), [result], attrs))
        return result

    def constant(self, value: Any, kind: int) -> str:
        """An initializer of this type; equal ones are one."""
        array = np.asarray(value).astype(_NUMPY[kind])
        key = (kind, array.shape, array.tobytes())
        if key not in self._constants:
            stem = f"const/{array.item():g}" if array.ndim == 0 else "const"
            self._constants[key] = self.fresh(stem)
            self.declare(self._constants[key], array, kind)
        return self._constants[key]

    def ints(self, values: Iterable[int]) -> str:
        """A vector of integers, as shapes and axes are given in ONNX."""
        return self.constant(np.array(list(values), np.int64), INT64)

    def declare(self, name: str, value: np.ndarray, kind: int) -> None:
        """An initializer under a given name."""
        array = np.ascontiguousarray(np.asarray(value).astype(_NUMPY[kind]))
        self._types[name] = kind
        shape = np.shape(value)
        self.initializers[name] = helper.make_tensor(name, kind, shape, array.tobytes(), raw=True)

    def cast(self, name: str, kind: int) -> str:
        """The same numbers in another type; `name` itself when it has that type."""
        if self._types[name] == kind:
            return name
        result = self.emit("Cast", [name], to=kind)
        self.records[-1].attrs["to"] = kind
        return result

    def reshape(self, name: str, shape: Iterable[int]) -> str:
        """The same elements in another shape."""
        return self.emit("Reshape", [name, self.ints(shape)], allowzero=1)

    def transpose(self, name: str, perm: Sequence[int]) -> str:
        """Axes in another order; `name` itself when that is the order they have."""
        if list(perm) == list(range(len(perm))):
            return name
        return self.emit("Transpose", [name], perm=list(perm))

    def end(self, node: Node, start: int, results: Sequence[str]) -> None:
        """Give the results of a rule the names of the node's outputs, and its nodes theirs."""
        made = {o for r in self.records[start:] for o in r.outputs}
        renamed: dict[str, str] = {}
        for result, output in zip(results, node.outputs, strict=True):
            if not output:
                continue
            if result not in made or result in renamed:
                result = self.emit("Identity", [result])
            renamed[result] = self.named(output)
        facts = {"ccnn.phase": node.phase, **({"ccnn.origin": node.origin} if node.origin else {})}
        mine = self.records[start:]
        for k, record in enumerate(mine):
            record.inputs = [renamed.get(i, i) for i in record.inputs]
            record.outputs = [renamed.get(o, o) for o in record.outputs]
            record.name = node.name if len(mine) == 1 else f"{node.name}:{k}"
            record.facts = facts


def free_name(stem: str, taken: set[str]) -> str:
    """`stem`, with a number behind it when it is taken."""
    name, k = stem, 1
    while name in taken:
        name, k = f"{stem}.{k}", k + 1
    return name
