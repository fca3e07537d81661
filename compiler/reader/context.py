"""The state of one translation: what each ONNX tensor has become, and the Builder behind it.

An ONNX tensor is Known (its value is at hand: an initializer, a constant, shape arithmetic),
Live (a tensor of the graph), Many (a sequence of such) or Broken (its node was refused, so
nodes that read it are passed over in silence and only the cause is reported).
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np

from ccnn.compiler.reader.decimals import meant
from ccnn.compiler.reader.load import Source
from ccnn.compiler.reader.onnx_node import MAX_EXTENT, OnnxNode
from ccnn.compiler.reader.options import ReadOptions
from ccnn.compiler.reader.problems import Findings, Refusal
from ccnn.compiler.reader.tensors import FLOATS, MAX_ELEMENTS
from ccnn.compiler.reader.weights import Draw
from ccnn.passes.graph import Builder, Node, freeze_attrs
from ccnn.passes.ops import op_named

MACHINE_NAME = re.compile(r"^(val_\d+|onnx::.*|\d+|/.*|.*[Cc]onst.*|scalar_.*|_.*)$")
"""Names that exporters give to tensors that had none; a scalar so called is no parameter."""


@dataclass(frozen=True)
class Known:
    """A value at hand.  `initializer`: may be trained; `stored`: a Constant node; else computed."""

    array: np.ndarray
    name: str
    kind: Literal["initializer", "stored", "computed"] = "computed"
    draw: Draw | None = None

    @property
    def is_float(self) -> bool:
        """True for floating-point values (bfloat16 included)."""
        return self.array.dtype.kind == "f" or self.array.dtype.name == "bfloat16"


@dataclass(frozen=True)
class Live:
    """A tensor of the graph."""

    tensor: str


@dataclass(frozen=True)
class Many:
    """An ONNX sequence."""

    items: tuple[Known | Live, ...]


@dataclass(frozen=True)
class Broken:
    """The result of a node that was refused."""


Value = Known | Live | Many | Broken


@dataclass
class Context:
    """One translation under way; `node` is the ONNX node being translated.

    Where a file's fixed batch is replaced, `batched` holds the tensors whose first axis is the
    batch, and `merged` those that are one sample after the other in memory but in another shape.
    """

    source: Source
    options: ReadOptions
    findings: Findings
    builder: Builder
    old_batch: int | None = None
    batch: int = 1
    env: dict[str, Value] = field(default_factory=dict)
    batched: set[str] = field(default_factory=set)
    merged: set[str] = field(default_factory=set)
    draws: dict[str, Draw] = field(default_factory=dict)
    uses: dict[str, list[str]] = field(default_factory=dict)
    reserved: set[str] = field(default_factory=set)
    counts: dict[str, int] = field(default_factory=dict)
    read: set[str] = field(default_factory=set)
    draws_for: dict[str, Draw] = field(default_factory=dict)
    node: OnnxNode = field(default_factory=lambda: OnnxNode("", "", "", (), (), 0))

    # ---- reading the current node's inputs

    def value(self, position: int) -> Known | Live:
        """The input at a position; raises Refusal when it is absent or a sequence."""
        if not self.node.has(position):
            raise Refusal(f"input {position} is missing")
        value = self.env[self.node.inputs[position]]
        if not isinstance(value, Known | Live):
            raise Refusal(f"input {position} is a sequence, not a tensor")
        return value

    def shape(self, position: int) -> tuple[int, ...]:
        """Shape of an input."""
        value = self.value(position)
        return value.array.shape if isinstance(value, Known) else self.builder.shape(value.tensor)

    def known(self, position: int) -> np.ndarray:
        """The value of an input that must be a constant."""
        value = self.value(position)
        if isinstance(value, Known):
            return value.array
        raise Refusal(
            f"its input {position} ('{self.node.inputs[position]}') is computed from data; "
            "it must be a constant",
            "export with fixed shapes (no dynamic_axes / dynamic_shapes) and simplify the model",
        )

    def ints(self, position: int) -> tuple[int, ...]:
        """A constant input as a list of integers."""
        array = self.known(position)
        if array.dtype.kind not in "iub" or array.ndim > 1:
            raise Refusal(f"input {position} should be a list of integers, it is {array.dtype}")
        if array.size > 4096:
            raise Refusal(f"input {position} has {array.size} elements, which is absurd")
        values = tuple(int(v) for v in array.reshape(-1))
        if any(abs(v) > MAX_EXTENT and abs(v) < (1 << 62) for v in values):
            raise Refusal(f"input {position} holds an absurd number: {values}")
        return values

    def scalar(self, position: int) -> float:
        """A constant input as one number."""
        array = self.known(position)
        if array.size != 1:
            raise Refusal(f"input {position} should be one number, it has {array.size}")
        return meant(float(array.reshape(-1)[0]))

    def tensor(self, position: int) -> str:
        """The graph tensor of an input; initializers become parameters, constants constants."""
        return self.tensor_of(self.value(position))

    def optional(self, position: int) -> str:
        """Like `tensor`; '' when the input is absent."""
        return self.tensor(position) if self.node.has(position) else ""

    def weight(self, position: int) -> str:
        """Like `tensor` for a slot that holds weights: where the file keeps all of them in
        Constant nodes, those are trained as well."""
        value = self.value(position)
        if isinstance(value, Known) and value.is_float and value.kind != "computed":
            if value.kind == "stored" and self.weights_are_initializers:
                return self.tensor_of(value)
            if value.kind == "stored":
                self.findings.note("weights stored in Constant nodes are trained like initializers")
            return self.parameter(value, "parameter")
        if isinstance(value, Known) and not value.is_float and value.kind != "computed":
            raise Refusal(
                f"the weights '{value.name}' hold {value.array.dtype}, floating-point numbers "
                "are needed",
                "export the float model, before quantisation",
            )
        return self.tensor_of(value)

    @cached_property
    def weights_are_initializers(self) -> bool:
        """True when the file has matrices or filters among its initializers: what it keeps in
        Constant nodes is then meant to stay, such as the filter of a blur."""
        return any(
            len(t.dims) > 1 and t.data_type in FLOATS and name not in self.source.buffers
            for name, t in self.source.initializers.items()
        )

    def bias(self, position: int) -> str:
        """Like `weight`; '' for an absent bias and for one that is computed and zero."""
        if not self.node.has(position):
            return ""
        value = self.value(position)
        if isinstance(value, Known) and value.kind != "initializer" and not np.any(value.array):
            return ""
        return self.weight(position)

    def tensor_of(self, value: Known | Live) -> str:
        """The graph tensor of a value, declared when this is its first use as data."""
        if isinstance(value, Live):
            return value.tensor
        if value.array.dtype.kind not in "fiub" and not value.is_float:
            raise Refusal(f"'{value.name}' holds {value.array.dtype}, numbers are needed")
        trained = value.kind == "initializer" and value.is_float
        if trained and value.array.size == 1 and MACHINE_NAME.match(value.name):
            self.findings.note(
                f"the scalar initializer '{value.name}' has a generated name: it is a constant",
                node=self.node.name, op=self.node.op,
            )  # fmt: skip
            trained = False
        if trained:
            return self.parameter(value, "parameter")
        with np.errstate(over="ignore"):
            array = value.array.astype(np.float32)
        _require_finite(array, value.name)
        if array.size == 1:
            array = np.full(array.shape, meant(float(array.reshape(()))))
        return self.builder.constant(array, self.stem("const"))

    def parameter(self, value: Known, role: Literal["parameter", "state"]) -> str:
        """Declare an initializer as a trained parameter or as state, under its own name."""
        b = self.builder
        if value.name in b.tensors:
            if b.tensors[value.name].role != role:
                raise Refusal(
                    f"'{value.name}' is used both as a trained parameter and as running statistics",
                    "export with do_constant_folding=False, and in training mode "
                    "(training=torch.onnx.TrainingMode.PRESERVE), which does not merge tensors",
                )
        else:
            array = value.array.astype(np.float32, copy=False)
            _require_finite(array, value.name)
            b.declare(value.name, array.shape, role, "float", array)
            if value.draw:
                self.draws[value.name] = value.draw
        users = self.uses.setdefault(value.name, [])
        if self.node.name not in users:
            users.append(self.node.name)
        return value.name

    # ---- writing the graph

    def constant(self, value: Any) -> str:
        """A float constant of the graph."""
        return self.builder.constant(np.asarray(value, np.float64), self.stem("const"))

    def reshaped(self, tensor: str, shape: tuple[int, ...]) -> Live:
        """The current node's result: `tensor` in another shape, itself when it has that shape."""
        if self.builder.shape(tensor) == tuple(shape):
            return Live(tensor)
        result = self.final("reshape", tensor, shape=shape)
        if tensor in self.batched | self.merged:
            first = tuple(shape[:1])
            (self.batched if first == (self.batch,) else self.merged).add(result.tensor)
        return result

    def stem(self, text: str) -> str:
        """A tensor name that no ONNX tensor has or will have."""
        name, k = text, 1
        while name in self.reserved or name in self.builder.tensors:
            name, k = f"{text}.{k}", k + 1
        return name

    def emit(self, op: str, *inputs: str, **attrs: Any) -> str:
        """Append a helper node; its result gets a name of its own."""
        return self._emit(op, inputs, attrs, "")[0]

    def final(self, op: str, *inputs: str, **attrs: Any) -> Live:
        """Append the node whose (first) result is this ONNX node's first output."""
        return Live(self._emit(op, inputs, attrs, self.node.output(0))[0])

    def final_all(self, op: str, *inputs: str, outputs: int = 0, **attrs: Any) -> list[Live]:
        """Like `final`, for ops with several results that are ONNX outputs number 0, 1 …"""
        names = self._emit(op, inputs, attrs, self.node.output(outputs))
        return [Live(name) for name in names]

    def _emit(
        self, op: str, inputs: tuple[str, ...], attrs: dict[str, Any], output: str
    ) -> tuple[str, ...]:
        while inputs and not inputs[-1]:
            inputs = inputs[:-1]
        probe = Node("probe", op, inputs, (), freeze_attrs(attrs))
        b = self.builder
        results = op_named(op).infer(probe, [b.tensors[i] if i else None for i in inputs])
        for shape, _ in results:
            if any(d < 1 for d in shape):
                raise Refusal(f"its result would have the shape {list(shape)}")
            if math.prod(shape) > MAX_ELEMENTS:
                raise Refusal(
                    f"its result would have {math.prod(shape):.3g} elements {list(shape)}; "
                    "the limit is 2^33",
                    "read the model with a smaller batch, or check its shapes",
                )
        first = self._output_name(output or f"{self.node.name}/{op}", bool(output))
        names = [first]
        for k in range(1, len(results)):
            names.append(self.stem(f"{first}.{k}"))
        b.origin = self.node.name
        name = self.node.name if output else f"{self.node.name}/{op}"
        made = b.emit_all(op, inputs, name=name, outputs=names, **attrs)
        if any(i in self.batched for i in inputs) and keeps_batch(op, attrs):
            self.batched.update(made)
        return made

    def _output_name(self, name: str, is_output: bool) -> str:
        free = name not in self.builder.tensors and (is_output or name not in self.reserved)
        return name if free else self.stem(f"{name}.1")


def _require_finite(array: np.ndarray, name: str) -> None:
    if array.size and not np.isfinite(array).all():
        bad = int(array.size - np.isfinite(array).sum())
        raise Refusal(
            f"the tensor '{name}' holds {bad} NaN or infinite value{'s' if bad > 1 else ''}",
            "the training run that made it diverged, or the file is damaged",
        )


def keeps_batch(op: str, attrs: dict[str, Any]) -> bool:
    """True when a result's first axis is its operand's first axis, sample by sample."""
    if op == "transpose":
        return attrs["perm"][0] == 0
    if op == "reshape":
        return False  # decided where the reshape is read
    if op.startswith("reduce_"):
        return 0 not in attrs["axes"]
    if op in ("softmax", "log_softmax", "concat"):
        return attrs["axis"] != 0
    return op not in ("softmax_cross_entropy", "mse")
