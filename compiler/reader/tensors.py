"""Tensors stored in a model, decoded with every length checked; external data stays at home."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from ccnn.compiler.reader.problems import Refusal

MAX_ELEMENTS = 1 << 33
"""Largest tensor accepted, weights and activations alike (32 GiB in float32)."""

_BITS: dict[int, int] = {
    TensorProto.FLOAT: 32, TensorProto.DOUBLE: 64, TensorProto.FLOAT16: 16,
    TensorProto.BFLOAT16: 16, TensorProto.INT8: 8, TensorProto.INT16: 16, TensorProto.INT32: 32,
    TensorProto.INT64: 64, TensorProto.UINT8: 8, TensorProto.UINT16: 16, TensorProto.UINT32: 32,
    TensorProto.UINT64: 64, TensorProto.BOOL: 8,
}  # fmt: skip
FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16)
_FIELDS: dict[int, str] = {
    TensorProto.FLOAT: "float_data", TensorProto.DOUBLE: "double_data",
    TensorProto.INT64: "int64_data", TensorProto.UINT64: "uint64_data",
    TensorProto.UINT32: "uint64_data",
}  # fmt: skip


def utf8(text: str | bytes) -> str:
    """A name from the file; raises Refusal for the bytes that protobuf gives when it is no text."""
    if isinstance(text, bytes):
        raise Refusal("a name in the file is not UTF-8 text", "the file is damaged: copy it again")
    return text


def type_name(data_type: int) -> str:
    """How ONNX spells an element type."""
    known = TensorProto.DataType.values()
    return TensorProto.DataType.Name(data_type) if data_type in known else f"type {data_type}"


@dataclass(frozen=True)
class Folder:
    """Where a model's external data may lie: the model's own folder and below."""

    path: Path

    def read(self, location: str, offset: int, length: int) -> bytes:
        """`length` bytes of a file in this folder; raises Refusal when it is not all there."""
        if not location or "\0" in location:
            raise Refusal("its external data names no file", "export the model again")
        root = self.path.resolve()
        file = (root / location).resolve()
        if not file.is_relative_to(root):
            raise Refusal(
                f"its external data '{location}' lies outside the model's folder",
                "put the data file beside the model and export with a relative name",
            )
        if not file.is_file():
            raise Refusal(
                f"its external data file '{location}' is missing",
                "copy the data file into the model's folder (it belongs to the .onnx file)",
            )
        size = file.stat().st_size
        if offset < 0 or length < 0 or offset + length > size:
            raise Refusal(
                f"its external data needs bytes {offset} to {offset + length} of '{location}', "
                f"which has {size}",
                "the data file is truncated or belongs to another model: copy it again",
            )
        with file.open("rb") as stream:
            stream.seek(offset)
            return stream.read(length)


def element_count(dims: tuple[int, ...]) -> int:
    """Number of elements; raises Refusal for negative or absurd dimensions."""
    if any(d < 0 for d in dims):
        raise Refusal(f"it has a negative dimension: {list(dims)}", "the file is damaged")
    count = math.prod(dims)
    if count > MAX_ELEMENTS:
        raise Refusal(
            f"it has {count:.3g} elements {list(dims)}; the limit is 2^33",
            "the file is damaged, or a dimension was meant otherwise",
        )
    return count


def to_array(tensor: TensorProto, folder: Folder | None) -> np.ndarray:
    """The value of a stored tensor; raises Refusal when its bytes do not fit its shape."""
    if len(tensor.dims) > 32:
        raise Refusal(f"it has {len(tensor.dims)} dimensions", "the file is damaged")
    count = element_count(tuple(tensor.dims))
    if tensor.data_type not in _BITS:
        raise Refusal(
            f"its element type {type_name(tensor.data_type)} is not supported",
            "export the model in float32",
        )
    if tensor.HasField("segment"):
        raise Refusal("it is stored in segments, which ONNX has dropped", "save the model again")
    length = count * _BITS[tensor.data_type] // 8
    if tensor.data_location == TensorProto.EXTERNAL:
        return _decode(tensor, _external_bytes(tensor, length, folder))
    if tensor.HasField("raw_data"):
        if len(tensor.raw_data) != length:
            raise Refusal(
                f"its shape {list(tensor.dims)} needs {length} bytes, the file holds "
                f"{len(tensor.raw_data)}",
                "the file is damaged: export or copy it again",
            )
        return _decode(tensor, tensor.raw_data)
    stored = len(getattr(tensor, _FIELDS.get(tensor.data_type, "int32_data")))
    if stored != count:
        raise Refusal(
            f"its shape {list(tensor.dims)} needs {count} values, the file holds {stored}",
            "the file is damaged: export or copy it again",
        )
    try:
        return numpy_helper.to_array(tensor)
    except (ValueError, TypeError, OverflowError) as error:
        raise Refusal(f"it cannot be decoded ({error})", "the file is damaged") from error


def _decode(tensor: TensorProto, data: bytes) -> np.ndarray:
    dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type))
    try:
        flat = np.frombuffer(data, dtype.newbyteorder("<"))
        return flat.reshape(tuple(tensor.dims)).astype(dtype, copy=False)
    except ValueError as error:
        raise Refusal(f"it cannot be decoded ({error})", "the file is damaged") from error


def _external_bytes(tensor: TensorProto, length: int, folder: Folder | None) -> bytes:
    if folder is None:
        raise Refusal(
            "it is stored in another file, and the model was not read from a file",
            "give the path of the .onnx file instead of the loaded model",
        )
    facts = {utf8(e.key): utf8(e.value) for e in tensor.external_data}
    try:
        offset = int(facts.get("offset") or 0)
        stored = int(facts.get("length") or length)
    except ValueError as error:
        raise Refusal("its external data has no readable offset and length") from error
    if stored != length:
        raise Refusal(
            f"its shape {list(tensor.dims)} needs {length} bytes, its external data says {stored}",
            "the file is damaged: export or copy it again",
        )
    return folder.read(facts.get("location", ""), offset, length)
