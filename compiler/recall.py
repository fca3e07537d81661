"""What `ccnn compile` made of an unchanged model, machine and options, found again in the cache.

Kept are the finished files as text (bytes as base64) inside JSON: nothing that is read back is ever
executed.  The key is all that the files depend on; compiler/cache.py adds ccnn itself.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError, Message

from ccnn.compiler import cache
from ccnn.compiler.options import Settings
from ccnn.targets.machine import load_machine

_KIND = "compile"


@dataclass(frozen=True)
class Product:
    """The files of a compilation by name, and what was said on standard error."""

    files: Mapping[str, str | bytes]
    warnings: tuple[str, ...]


def product_key(model: Path, settings: Settings, ablate: bool) -> bytes | None:
    """A text that differs where a compilation may; None where the model's data cannot be read.

    Raises MachineError when there is no such machine.
    """
    try:
        content = model.read_bytes()
        data = [(name, _digest(model.parent / name)) for name in _external_files(content)]
        chosen = asdict(settings)
        if settings.from_mapping is not None:
            chosen["from_mapping"] = _digest(settings.from_mapping)
    except (OSError, DecodeError):
        return None  # whoever reads the model says what is wrong
    facts = {
        "model": [model.name, hashlib.sha256(content).hexdigest()],
        "data": data,
        "machine": repr(load_machine(settings.target)),
        "settings": chosen,
        "ablate": ablate,
    }
    return json.dumps(facts, sort_keys=True, default=str).encode()


def recall(key: bytes) -> Product | None:
    """What was kept under this key."""
    text = cache.get(_KIND, key)
    if text is None:
        return None
    try:
        kept = json.loads(text)
        files = {
            name: base64.b64decode(body) if binary else body
            for name, (binary, body) in kept["files"].items()
        }
        return Product(files, tuple(kept["warnings"]))
    except (ValueError, KeyError, TypeError):
        return None


def keep(key: bytes, product: Product) -> None:
    """Keep the files of a finished compilation."""
    files = {
        name: [True, base64.b64encode(body).decode()] if isinstance(body, bytes) else [False, body]
        for name, body in product.files.items()
    }
    cache.put(_KIND, key, json.dumps({"files": files, "warnings": product.warnings}))


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _external_files(content: bytes) -> list[str]:
    """Names of the files beside the model that hold tensors of it, sorted."""
    if b"location" not in content:  # the key without which no tensor is elsewhere
        return []
    return sorted(set(_locations(onnx.ModelProto.FromString(content))))


def _locations(message: Message) -> Iterator[str]:
    if isinstance(message, onnx.TensorProto):
        yield from (e.value for e in message.external_data if e.key == "location")
        return
    for field, value in message.ListFields():
        if field.message_type is not None:
            for part in value if isinstance(value, Iterable) else (value,):
                yield from _locations(part)
