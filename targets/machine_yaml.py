"""Reading of a machine file into plain values that remember their lines.

Only what a machine needs of YAML is accepted: mappings, text, numbers; no anchors or aliases, no
tags, one document.  That leaves nothing with which a hostile file could grow in memory.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

KeyPath = tuple[str, ...]
"""The keys from the top of the file down to a value."""

_DEEPEST = 8
_SCALARS = {"int", "float", "str", "bool", "null"}


class MachineError(Exception):
    """A machine description that cannot be used; says what is wrong, where, and what to do."""


def key_name(path: KeyPath) -> str:
    """'array.rows' for ('array', 'rows')."""
    return ".".join(path)


@dataclass(frozen=True)
class Document:
    """The values of a machine file and the (file, line) that each of them came from."""

    file: str
    values: dict[str, Any]
    places: Mapping[KeyPath, tuple[str, int]]

    def at(self, path: KeyPath) -> str:
        """'in wavecore.yaml, line 7': where a key, or the nearest one around it, is written."""
        while path not in self.places and path:
            path = path[:-1]
        file, line = self.places.get(path, (self.file, 1))
        return f"in {file}, line {line}"

    def error(self, path: KeyPath, problem: str) -> MachineError:
        """A complaint about a key."""
        subject = key_name(path) if path else "the machine"
        where = self.at(path).removeprefix("in ")
        return MachineError(f"{where}: {subject} {problem}")

    def over(self, parent: Document) -> Document:
        """This document laid over the one it inherits from."""
        return Document(
            self.file, _merge(parent.values, self.values), {**parent.places, **self.places}
        )


def _merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Sections key by key; an energy row as a whole, so that a number keeps its own source."""
    if "pj" in above:
        return above
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            merged[key] = _merge(old, value)
        else:
            merged[key] = value
    return merged


def read_document(data: bytes, file: str, largest: int) -> Document:
    """Parse the bytes of a machine file; raises MachineError with file and line."""
    if len(data) > largest:
        raise MachineError(
            f"{file}: more than {largest} bytes; a machine needs a hundredth of that, "
            "so check that this is the file you mean"
        )
    try:
        text = data.decode("utf-8")
        _refuse_dangerous(text, file)
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise MachineError(f"{file}, line {line}: not UTF-8 text; save it as UTF-8") from error
    except yaml.YAMLError as error:
        raise _yaml_error(error, file) from error
    if not isinstance(root, yaml.MappingNode):
        raise MachineError(f"{file}, line 1: not a machine; write keys such as 'name: mine'")
    places: dict[KeyPath, tuple[str, int]] = {(): (file, root.start_mark.line + 1)}
    values = _mapping(root, (), file, places)
    return Document(file, values, places)


def _refuse_dangerous(text: str, file: str) -> None:
    """Look at the flat event stream first: composing recurses and follows aliases."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        line = event.start_mark.line + 1 if event.start_mark else 1
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > _DEEPEST:
                raise MachineError(f"{file}, line {line}: nested deeper than {_DEEPEST} levels")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if getattr(event, "anchor", None):
            raise MachineError(
                f"{file}, line {line}: anchors and aliases (& and *) are not read; "
                "write the value out, or use inherits"
            )


def _yaml_error(error: yaml.YAMLError, file: str) -> MachineError:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "unreadable"
    line = f", line {mark.line + 1}" if mark else ""
    return MachineError(f"{file}{line}: not YAML: {problem}; check indentation, colons and quotes")


def _mapping(
    node: yaml.MappingNode, path: KeyPath, file: str, places: dict[KeyPath, tuple[str, int]]
) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode):
            raise MachineError(f"{file}, line {line}: a key must be a single word")
        key = key_node.value
        here = (*path, key)
        if key in values:
            first = places[here][1]
            raise MachineError(
                f"{file}, line {line}: {key_name(here)} is given twice, first on line {first}; "
                "remove one"
            )
        places[here] = (file, line)
        values[key] = _value(value_node, here, file, places)
    return values


def _value(
    node: yaml.Node, path: KeyPath, file: str, places: dict[KeyPath, tuple[str, int]]
) -> Any:
    if isinstance(node, yaml.MappingNode):
        return _mapping(node, path, file, places)
    where = f"{file}, line {node.start_mark.line + 1}: {key_name(path)}"
    if not isinstance(node, yaml.ScalarNode):
        raise MachineError(f"{where} is a list; a machine has none, write one value")
    return _scalar(node, where)


def _scalar(node: yaml.ScalarNode, where: str) -> Any:
    prefix, _, kind = node.tag.rpartition(":")
    if prefix != "tag:yaml.org,2002" or kind not in _SCALARS:
        raise MachineError(f"{where} is of the kind {kind or node.tag}; write a number or text")
    if kind in ("int", "float") and ":" in node.value:
        raise MachineError(f"{where} is '{node.value}', a number in base 60; write it in base 10")
    try:
        value = yaml.constructor.SafeConstructor().construct_object(node)
    except ValueError as error:
        raise MachineError(f"{where} is no number that can be read; write plain digits") from error
    if isinstance(value, float) and not math.isfinite(value):
        raise MachineError(f"{where} is {node.value}; write a finite number")
    return value
