"""Weight-stripped models: initial values for weights that a file only gives the shape of.

Such files make each weight with a ConstantOfShape node.  Convolution weights are drawn with
standard deviation sqrt(2 / fan-in) (He et al. 2015), matrices with sqrt(1 / fan-in); norm scales
and variances are 1, biases and means 0, PReLU slopes 0.25.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ccnn.compiler.reader.load import Source
from ccnn.compiler.reader.onnx_node import OnnxNode

Kind = Literal["conv", "conv_transpose", "rows", "columns", "one", "zero", "slope"]
_MOVES = ("Unsqueeze", "Squeeze", "Reshape", "Identity", "Transpose", "Cast", "Flatten")
_NORMS: dict[int, Kind] = {1: "one", 2: "zero", 3: "zero", 4: "one"}
_SLOTS: dict[str, dict[int, Kind]] = {
    "Conv": {1: "conv", 2: "zero"},
    "ConvTranspose": {1: "conv_transpose", 2: "zero"},
    "Gemm": {0: "columns", 1: "rows", 2: "zero"},
    "MatMul": {0: "columns", 1: "rows"},
    "BatchNormalization": _NORMS,
    "InstanceNormalization": _NORMS,
    "LayerNormalization": _NORMS,
    "GroupNormalization": _NORMS,
    "PRelu": {1: "slope"},
}
_ELEMENTWISE: dict[str, Kind] = {"Mul": "one", "Div": "one", "Add": "zero", "Sum": "zero"}


@dataclass(frozen=True)
class Draw:
    """How a missing weight is made up."""

    kind: Kind


def stripped_weights(source: Source) -> dict[str, Draw]:
    """The ConstantOfShape outputs that stand for weights, and how each is to be drawn.

    Only those count whose shape is an initializer and that reach a weight's place, directly or
    through nodes that move data; operands of Mul and Add count if other weights are missing too.
    """
    consumers: dict[str, list[tuple[OnnxNode, int]]] = {}
    for node in source.nodes:
        for position, name in enumerate(node.inputs):
            consumers.setdefault(name, []).append((node, position))
    sure: dict[str, Draw] = {}
    maybe: dict[str, Draw] = {}
    for node in source.nodes:
        if node.op != "ConstantOfShape" or not set(node.inputs) <= set(source.initializers):
            continue
        fill = node.attrs.get("value")
        if isinstance(fill, np.ndarray) and fill.dtype.kind != "f":
            continue
        name = node.output(0)
        kind, certain = _kind(name, consumers)
        if kind:
            (sure if certain else maybe)[name] = Draw(kind)
    return {**sure, **maybe} if sure else {}


def _kind(name: str, consumers: dict[str, list[tuple[OnnxNode, int]]]) -> tuple[Kind | None, bool]:
    seen, queue = {name}, [name]
    while queue:
        for node, position in consumers.get(queue.pop(), ()):
            slot = _SLOTS.get(node.op, {}).get(position)
            if slot == "rows" and node.attrs.get("transB"):
                slot = "columns"
            if slot:
                return slot, True
            if node.op in _ELEMENTWISE:
                return _ELEMENTWISE[node.op], False
            if node.op in _MOVES and position == 0 and node.output(0) not in seen:
                seen.add(node.output(0))
                queue.append(node.output(0))
    return None, False


def draw_weight(name: str, shape: tuple[int, ...], draw: Draw, seed: int) -> np.ndarray:
    """Initial float32 values, the same for the same seed, name and shape."""
    if draw.kind in ("one", "zero", "slope"):
        value = {"one": 1.0, "zero": 0.0, "slope": 0.25}[draw.kind]
        return np.full(shape, value, np.float32)
    size = int(np.prod(shape, dtype=np.int64))
    per_output = {
        "conv": size // max(shape[0], 1) if shape else 1,
        "conv_transpose": size // max(shape[1], 1) if len(shape) > 1 else 1,
        "rows": shape[-2] if len(shape) > 1 else size,
        "columns": shape[-1] if shape else 1,
    }[draw.kind]
    gain = 2.0 if draw.kind.startswith("conv") else 1.0
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    values = rng.standard_normal(shape, np.float32)
    return values * np.float32(np.sqrt(gain / max(per_output, 1)))
