"""A model without its secrets: names numbered, weights made up, texts removed.

What the compiler looks at stays: the nodes and their operators, attributes, shapes, element types,
integers (shapes, axes, indices), single numbers, and tensors of one repeated number. Every other
number is drawn, and every text of the file that is not listed here is removed.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import onnx
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from onnx import ModelProto, TensorProto

from ccnn.compiler.reader.context import MACHINE_NAME
from ccnn.compiler.reader.problems import Refusal
from ccnn.compiler.reader.report import FOLDED_NAME
from ccnn.compiler.reader.tensors import Folder, to_array, utf8
from ccnn.compiler.reader.translate import SHAPE_SLOTS

_NAMES = {
    "NodeProto": ("name", "input", "output"),
    "ValueInfoProto": ("name",),
    "TensorProto": ("name",),
    "Dimension": ("dim_param",),
    "FunctionProto": ("name", "input", "output"),
}
"""Fields that hold names, by message."""

_KEPT = {
    "ModelProto": ("producer_name", "producer_version"),
    "NodeProto": ("op_type", "domain", "overload"),
    "AttributeProto": ("name", "ref_attr_name"),
    "FunctionProto": ("attribute", "overload", "domain"),
    "OperatorSetIdProto": ("domain",),
}
"""Texts that stay as they are, by message; all others are removed."""

_EMPTIED = ("metadata_props", "quantization_annotation", "configuration", "device_configurations")
_DATA = ("raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data")
_QUANTISED = re.compile(r"QLinear|quantize|Integer$", re.IGNORECASE)
_SHAPES_ONLY = ("Shape", "Size")
_INDICES = (np.dtype(np.int64), np.dtype(np.int32), np.dtype(np.bool_))
_HAVE_DOMAINS = (onnx.NodeProto, onnx.OperatorSetIdProto, onnx.FunctionProto)
_PERIOD = 251
"""Drawn numbers repeat after as many, so that the file packs small."""
_LARGEST_BOUND = 64
"""Elements of a floating-point tensor that is kept because it ends in a shape or a bound."""


_WORD = re.compile(r"[^\s'(),;]+?(?=[:.]?(?:[\s'(),;]|$))|\S")
"""A name or a word in a message, without the mark behind it; or one mark."""


class Names:
    """Old names to new ones: numbered in alphabetical order, as ties are broken by names."""

    def __init__(self, old: Iterable[str]) -> None:
        """What the reader recognises a name by is kept: generated, and of a batch norm."""
        names = sorted(set(old) - {""})
        width = len(str(len(names)))
        self.new = {name: f"n{k:0{width}}{_marks(name)}" for k, name in enumerate(names)}

    def __getitem__(self, name: str) -> str:
        return self.new.get(name, "")

    @cached_property
    def _long(self) -> re.Pattern[str]:
        # Names of one or two letters are words as well; they are replaced in quotes only.
        longest = sorted(self.new, key=lambda n: (-len(n), n))
        free = [re.escape(n) for n in longest if len(n) > 2]
        quoted = [f"(?<='){re.escape(n)}(?=')" for n in longest if len(n) <= 2]
        return re.compile("|".join((*free, *quoted)) or r"(?!)")

    def in_text(self, text: str) -> str:
        """A message with all names replaced that can be told from words."""
        return self._long.sub(lambda found: self.new[found.group()], text)

    def same(self, before: str, after: str) -> bool:
        """True when a message differs from that about the scrambled model in names only."""
        first, second = (_WORD.findall(text) for text in (before, after))
        return self.in_text(before) == after or (
            len(first) == len(second)
            and all(
                a == b or self[a] == b or self.in_text(a) == b
                for a, b in zip(first, second, strict=True)
            )
        )


def scramble(model: ModelProto, folder: Folder | None) -> tuple[ModelProto, Names]:
    """A copy of the model without weights and names, and what its names became.

    `folder` is where its external data lies. Raises Refusal for names that are no text.
    """
    scrambled = ModelProto()
    scrambled.CopyFrom(model)
    scrambled.DiscardUnknownFields()  # pyright: ignore[reportAttributeAccessIssue]
    called = {(f.domain, f.name) for f in scrambled.functions}
    domains = {domain for domain, _ in called} - {"", "ai.onnx"}
    names = Names([*_names(scrambled), *domains])
    _clean(scrambled, names, _Tensors(names, folder, *_uses(scrambled)))
    for message in _all(scrambled):
        if isinstance(message, onnx.NodeProto) and (message.domain, message.op_type) in called:
            message.op_type = names[message.op_type]
        if isinstance(message, _HAVE_DOMAINS) and message.domain in domains:
            message.domain = names[message.domain]
    scrambled.graph.name = "model"
    return scrambled, names


def _marks(name: str) -> str:
    return ("const" if MACHINE_NAME.match(name) else "") + (
        ".bn" if FOLDED_NAME.search(name) else ""
    )


def _all(message: Message) -> Iterator[Any]:
    """A message and all that it holds."""
    yield message
    for field, value in message.ListFields():
        if field.type == FieldDescriptor.TYPE_MESSAGE:
            for part in (value,) if isinstance(value, Message) else value:
                yield from _all(part)


def _names(model: ModelProto) -> Iterator[str]:
    for message in _all(model):
        for name in _NAMES.get(message.DESCRIPTOR.name, ()):
            value = getattr(message, name)
            for text in (value,) if isinstance(value, str | bytes) else value:
                yield utf8(text)
        if isinstance(message, TensorProto):
            yield from (utf8(e.value) for e in message.external_data if e.key == "location")


def _uses(model: ModelProto) -> tuple[set[str], set[str]]:
    """Names of the tensors that end in a shape or a bound, and of those that are quantised."""
    bounds: set[str] = set()
    quantised: set[str] = set()
    for node in reversed([m for m in _all(model) if isinstance(m, onnx.NodeProto)]):
        slots = SHAPE_SLOTS.get(node.op_type, ())
        bounds.update(name for k, name in enumerate(node.input) if k in slots)
        if set(node.output) & bounds and node.op_type not in _SHAPES_ONLY:
            bounds.update(node.input)
        if _QUANTISED.search(node.op_type):
            quantised.update(node.input)
    return bounds, quantised


@dataclass(frozen=True)
class _Tensors:
    """Replaces the numbers of tensors, but for those that decide what is computed."""

    names: Names
    folder: Folder | None
    bounds: set[str]
    quantised: set[str]

    def replace(self, tensor: TensorProto, name: str, new: str) -> None:
        """Give a tensor its new name and made-up numbers; `name` says how it is used."""
        tensor.name = new
        tensor.ClearField("doc_string")
        tensor.string_data[:] = [b"text"] * len(tensor.string_data)
        try:
            array = to_array(tensor, self.folder)
        except Refusal:  # as the reader will say; what cannot be read cannot be used either
            _blank(tensor, self.names)
            return
        if not self._stays(array, name):
            array = _drawn(array, new)
        kind, dims = tensor.data_type, tuple(tensor.dims)
        tensor.Clear()
        tensor.name, tensor.data_type, tensor.raw_data = new, kind, array.tobytes()
        tensor.dims.extend(dims)

    def _stays(self, array: np.ndarray, name: str) -> bool:
        flat = array.reshape(-1)
        if flat.size == 0 or bool((flat == flat[0]).all()):
            return True
        if name in self.quantised:
            return False
        return array.dtype in _INDICES or (flat.size <= _LARGEST_BOUND and name in self.bounds)


def _blank(tensor: TensorProto, names: Names) -> None:
    """Zeros of the same number of bytes; an external file gets a number for a name."""
    for field in _DATA:
        value = getattr(tensor, field)
        if isinstance(value, bytes):
            if value:
                tensor.raw_data = bytes(len(value))
        else:
            value[:] = [0] * len(value)
    facts = {e.key: e.value for e in tensor.external_data}
    del tensor.external_data[:]
    for key, value in facts.items():
        if key == "location":
            tensor.external_data.add(key=key, value=names[utf8(value)])
        elif key in ("offset", "length"):
            tensor.external_data.add(key=key, value=value)


def _drawn(array: np.ndarray, name: str) -> np.ndarray:
    """Numbers of the same shape, type and sort (finite, negative), the same for the same name."""
    flat = array.reshape(-1)
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    few = min(flat.size, _PERIOD)
    if array.dtype.kind in "iub":
        made = np.resize(rng.integers(0, 127, few), flat.size).astype(array.dtype)
        return made.reshape(array.shape)
    fan_in = max(flat.size // max(*array.shape[:1], 1), 1)
    numbers = rng.standard_normal(few) / np.sqrt(fan_in)
    if not (flat < 0).any():
        numbers = np.abs(numbers) + 0.125  # a variance, which must not be negative
    finite = np.isfinite(flat.astype(np.float64))
    made = np.where(finite, np.resize(numbers, flat.size).astype(array.dtype), flat)
    return made.astype(array.dtype).reshape(array.shape)


def _clean(message: Message, names: Names, tensors: _Tensors, owner: str = "") -> None:
    """Rename, redraw and remove; `owner` is what a Constant node calls the tensor in it."""
    for field in _EMPTIED:
        if field in message.DESCRIPTOR.fields_by_name:
            message.ClearField(field)
    if isinstance(message, TensorProto):
        name = utf8(message.name)
        tensors.replace(message, owner or name, names[name])
        return
    if isinstance(message, onnx.NodeProto):
        owner = utf8(message.output[0]) if message.op_type == "Constant" and message.output else ""
        _clean_attributes(message, names[owner])
    kind = message.DESCRIPTOR.name
    for field, value in message.ListFields():
        if field.type == FieldDescriptor.TYPE_MESSAGE:
            for part in (value,) if isinstance(value, Message) else value:
                _clean(part, names, tensors, owner)
        elif field.type == FieldDescriptor.TYPE_STRING and field.name not in _KEPT.get(kind, ()):
            if field.name not in _NAMES.get(kind, ()):
                message.ClearField(field.name)
            elif isinstance(value, str):
                setattr(message, field.name, names[value])
            else:
                value[:] = [names[v] for v in value]


def _clean_attributes(node: onnx.NodeProto, name: str) -> None:
    """Texts stay in attributes that ONNX defines (a padding mode), numbers unless they are data."""
    for attribute in node.attribute:
        if node.op_type == "Constant" or not _is_standard(node, attribute.name):
            attribute.strings[:] = [b"text"] * len(attribute.strings)
            if attribute.s:
                attribute.s = b"text"
        values = np.asarray(attribute.floats, np.float32)
        if node.op_type == "Constant" and values.size and (values != values[0]).any():
            attribute.floats[:] = _drawn(values, name).tolist()


def _is_standard(node: onnx.NodeProto, attribute: str) -> bool:
    if node.domain not in ("", "ai.onnx") or not onnx.defs.has(node.op_type):
        return False
    known: Mapping[str, Any] = onnx.defs.get_schema(node.op_type).attributes
    return attribute in known
