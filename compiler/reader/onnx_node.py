"""An ONNX node as plain Python values, with attributes read by the type that is expected."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx

from ccnn.compiler.reader.decimals import meant
from ccnn.compiler.reader.problems import Refusal
from ccnn.compiler.reader.tensors import to_array, utf8

_KINDS = onnx.AttributeProto
MAX_EXTENT = 1 << 40
"""No attribute or dimension of a real model is larger; beyond it numpy and we would overflow."""


@dataclass(frozen=True)
class Branch:
    """One branch of an If: its nodes in execution order, what it gives and holds."""

    nodes: tuple[OnnxNode, ...]
    outputs: tuple[str, ...]
    initializers: dict[str, onnx.TensorProto]

    @property
    def captured(self) -> tuple[str, ...]:
        """What it reads or hands on from outside, each once."""
        made = {*self.initializers, *(o for n in self.nodes for o in n.outputs)}
        read = [i for n in self.nodes for i in n.inputs] + [*self.outputs]
        return tuple(dict.fromkeys(i for i in read if i and i not in made))


@dataclass(frozen=True)
class OnnxNode:
    """One node of the ONNX graph; `attrs` holds ints, floats, str, arrays and tuples of them.

    The inputs of an If go on with what its branches read from outside.
    """

    name: str
    op: str
    domain: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    opset: int
    attrs: dict[str, Any] = field(default_factory=dict)
    rule: str = ""
    """What rewrote the node before it was exported, where the file says so."""

    def has(self, position: int) -> bool:
        """True when the input at this position is given."""
        return position < len(self.inputs) and self.inputs[position] != ""

    def output(self, position: int) -> str:
        """Name of an output, '' when it is absent."""
        return self.outputs[position] if position < len(self.outputs) else ""

    def int(self, name: str, default: int | None = None) -> int:
        """An integer attribute; raises Refusal when it is missing or not an integer."""
        value = self._get(name, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise Refusal(f"attribute '{name}' should be an integer, it is {_brief(value)}")
        if abs(value) > MAX_EXTENT:
            raise Refusal(f"attribute '{name}' is {value}, which is absurd")
        return value

    def float(self, name: str, default: float | None = None) -> float:
        """A float attribute; raises Refusal when it is missing, not a number or not finite."""
        value = self._get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise Refusal(f"attribute '{name}' should be a number, it is {_brief(value)}")
        if not np.isfinite(value):
            raise Refusal(f"attribute '{name}' is {value}")
        return float(value)

    def ints(self, name: str, default: tuple[int, ...] | None = None) -> tuple[int, ...]:
        """A list of integers; raises Refusal when it is missing or holds anything else."""
        value = self._get(name, default)
        value = (value,) if isinstance(value, int) else value
        if not isinstance(value, tuple) or not all(isinstance(v, int) for v in value):
            raise Refusal(f"attribute '{name}' should be a list of integers, it is {_brief(value)}")
        if any(abs(v) > MAX_EXTENT for v in value):
            raise Refusal(f"attribute '{name}' is {_brief(value)}, which is absurd")
        return value

    def text(self, name: str, default: str | None = None) -> str:
        """A string attribute; raises Refusal when it is missing or not text."""
        value = self._get(name, default)
        if not isinstance(value, str):
            raise Refusal(f"attribute '{name}' should be text, it is {_brief(value)}")
        return value

    def _get(self, name: str, default: Any) -> Any:
        value = self.attrs.get(name, default)
        if value is None:
            raise Refusal(f"the attribute '{name}' is missing")
        return value


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 60 else text[:57] + "..."


def name_of(proto: onnx.NodeProto, position: int) -> str:
    """What a node is called: its name, else its first output, else its place in the file."""
    outputs = (utf8(o) for o in proto.output)
    return utf8(proto.name) or next((o for o in outputs if o), "") or f"node {position}"


def read_node(proto: onnx.NodeProto, opsets: dict[str, int], position: int) -> OnnxNode:
    """A NodeProto as an OnnxNode; raises Refusal for what cannot be decoded."""
    domain = "" if proto.domain == "ai.onnx" else utf8(proto.domain)
    outputs = tuple(utf8(o) for o in proto.output)
    inputs = tuple(utf8(i) for i in proto.input)
    name = name_of(proto, position)
    attrs = {utf8(a.name): _attribute(a) for a in proto.attribute}
    op = utf8(proto.op_type)
    if op == "If" and not domain:
        branches = {
            utf8(a.name): _branch(a.g, opsets) for a in proto.attribute if a.type == _KINDS.GRAPH
        }
        attrs |= branches
        inputs = tuple(
            dict.fromkeys((*inputs, *(i for b in branches.values() for i in b.captured)))
        )
    rules = (utf8(p.value) for p in proto.metadata_props if p.key.endswith("rewriter.rule_name"))
    opset, rule = opsets.get(domain, 0), next(rules, "")
    return OnnxNode(name, op, domain, inputs, outputs, opset, attrs, rule)


def _branch(graph: onnx.GraphProto, opsets: dict[str, int]) -> Branch:
    return Branch(
        tuple(read_node(n, opsets, k) for k, n in enumerate(graph.node)),
        tuple(utf8(o.name) for o in graph.output),
        {utf8(t.name): t for t in graph.initializer},
    )


def _attribute(a: onnx.AttributeProto) -> Any:
    try:
        match a.type:
            case _KINDS.FLOAT:
                return meant(a.f)
            case _KINDS.INT:
                return int(a.i)
            case _KINDS.STRING:
                return a.s.decode("utf-8")
            case _KINDS.FLOATS:
                return tuple(meant(v) for v in a.floats)
            case _KINDS.INTS:
                return tuple(int(v) for v in a.ints)
            case _KINDS.STRINGS:
                return tuple(s.decode("utf-8") for s in a.strings)
            case _KINDS.TENSOR:
                return to_array(a.t, None)
    except UnicodeDecodeError as error:
        raise Refusal(f"attribute '{a.name}' is not UTF-8 text", "the file is damaged") from error
    return f"<{_KINDS.AttributeType.Name(a.type)}>" if a.type in range(15) else "<unknown>"
